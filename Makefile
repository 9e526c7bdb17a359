# One environment (.venv, exact versions from constraints.txt) and the commands that people run.
PYTHON ?= python3
MODEL  ?= koala-lightning-700m
OUT    ?= bundles/$(notdir $(MODEL))
PROMPT ?= a small red circle left of a blue square on a white background
ARGS   ?=
# Latency does not depend on weights, so bench-gpu needs no download; WEIGHTS= takes the model's own.
WEIGHTS ?= --random-weights
RESULTS ?= bench/results/gpu-$(notdir $(MODEL))
STEPS   ?= 1,4,10,25
BENCH   ?=
# TensorRT is installed where there is an NVIDIA driver to build with.
EXTRAS ?= export,rtx,bench,dev,docs$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)tensorrt)

comma := ,
BIN   := .venv/bin
READY := .venv/ready
OPTIMUM := build/optimum/ready

.PHONY: help image engines test test-full test-gpu bench bench-gpu check docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt open_clip_torch
	@touch $(READY)

image: $(READY) ## Draw a picture: make image PROMPT="a large green star on a black background"
	$(BIN)/koala export examples/koala-tiny/checkpoint build/bundle --steps 10 --guidance-scale 2
	$(BIN)/koala engines build/bundle --target cpu
	$(BIN)/koala run build/bundle "$(PROMPT)" --seed 0 --output koala.png

engines: $(READY) ## Build for this machine: make engines MODEL=... OUT=... [ARGS="--batch 2"]
	$(BIN)/koala export $(MODEL) $(OUT) $(ARGS)
	$(BIN)/koala engines $(OUT)

test: $(READY) ## Run the tests (minutes, no GPU needed)
	$(BIN)/python -m pytest -m "not full and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-full: $(READY) ## Run the slow tests too: full-size checkpoints, many kills (needs 24 GB of memory, 40 GB of disk)
	$(BIN)/python -m pytest -m full tests/test_full_size.py --durations=10
	$(BIN)/python -m pytest -m full --ignore tests/test_full_size.py -n 2 --dist loadfile --no-loadscope-reorder --durations=25

test-gpu: $(READY) ## Run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

# optimum-onnx asks for an older transformers; torch and ONNX Runtime are the same, so that the comparison is fair.
$(OPTIMUM): constraints.txt
	$(PYTHON) -m venv build/optimum
	build/optimum/bin/pip install --quiet . 'optimum-onnx[onnxruntime]==0.1.0' 'diffusers<0.37' accelerate \
		$(shell grep -E '^(torch|onnxruntime)==' constraints.txt)
	@touch $@

bench: $(READY) $(OPTIMUM) ## Measure koala-tiny and KOALA-700M at 256 px on this processor beside PyTorch (BENCH=... adds options)
	$(BIN)/koala export examples/koala-tiny/checkpoint build/bundle --steps 10 --guidance-scale 2
	$(BIN)/koala engines build/bundle --target cpu
	$(BIN)/koala bench build/bundle examples/koala-tiny/checkpoint --output bench/results/cpu-koala-tiny \
		--python optimum-onnx=build/optimum/bin/python $(BENCH)
	$(BIN)/koala export koala-lightning-700m build/bench-700m --random-weights --no-gate --height 256 --width 256
	$(BIN)/koala engines build/bench-700m --target cpu
	$(BIN)/koala bench build/bench-700m koala-lightning-700m --random-weights --alone --rounds 6 --steps 4 \
		--output bench/results/cpu-koala-700m-256px --python optimum-onnx=build/optimum/bin/python $(BENCH)

bench-gpu: $(READY) ## Measure a full-size model on this GPU beside PyTorch: make bench-gpu [MODEL=...] [WEIGHTS=] [BENCH=...]
	$(BIN)/koala export $(MODEL) build/bench-gpu $(WEIGHTS) --no-gate $(ARGS)
	$(BIN)/koala engines build/bench-gpu
	$(BIN)/koala bench build/bench-gpu $(MODEL) $(WEIGHTS) --output $(RESULTS) $(BENCH)
	$(BIN)/koala bench build/bench-gpu $(MODEL) $(WEIGHTS) --output $(RESULTS) --rounds 5 --steps-sweep $(STEPS) $(BENCH)

check: $(READY) ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## Build the documentation into build/site, with every link checked
	$(BIN)/python docs/build_site.py

clean: ## Remove what was built, and the environment
	rm -rf .venv build bundles koala.png .mypy_cache .ruff_cache .import_linter_cache .cache
