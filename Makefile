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
EXTRAS ?= export,lora,cpu,rtx,bench,serve,ray,sign,dev,docs$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)tensorrt)

comma := ,
BIN   := .venv/bin
READY := .venv/ready
GPU_REPORT := build/gpu-report.txt
OTHERS := build/optimum/ready build/openvino/ready
PYTHONS := --python optimum-onnx=build/optimum/bin/python --python openvino-genai=build/openvino/bin/python
# Two workers, each a whole file at a time, in the order that tests/conftest.py gives them. Each computes with one
# thread: OpenMP's threads spin while they wait, which would take the core of the other worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help image engines test test-full test-gpu bench bench-gpu check docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt open_clip_torch invisible-watermark
	@touch $(READY)

image: $(READY) ## Draw a picture: make image PROMPT="a large green star on a black background"
	$(BIN)/koala build examples/koala-tiny/checkpoint build/bundle --steps 10 --guidance-scale 2 --target cpu
	$(BIN)/koala run build/bundle "$(PROMPT)" --seed 0 --output koala.png

engines: $(READY) ## Build for this machine: make engines MODEL=... OUT=... [ARGS="--batch 2"]
	$(BIN)/koala build $(MODEL) $(OUT) $(ARGS)

test: $(READY) ## Run the tests (minutes, no GPU needed)
	$(PYTEST) -m "not full and not gpu"

test-full: $(READY) ## Run the slow tests too: full-size checkpoints, many kills (needs 24 GB of memory, 40 GB of disk)
	$(PYTEST) -m full --durations=25

test-gpu: $(READY) ## Run the tests that need an NVIDIA GPU; build/gpu-report.txt is the report
	@mkdir -p build
	$(BIN)/koala doctor > $(GPU_REPORT)
	bash -o pipefail -c '$(BIN)/python -m pytest -m gpu -rfEsp --durations=0 | tee -a $(GPU_REPORT)'

# optimum-onnx and optimum-intel require older versions of transformers, so each gets an environment of its own, with the
# same torch and ONNX Runtime.
build/optimum/ready: constraints.txt
	$(PYTHON) -m venv build/optimum
	build/optimum/bin/pip install --quiet -e . 'optimum-onnx[onnxruntime]==0.1.0' 'diffusers<0.37' accelerate \
		$(shell grep -E '^(torch|onnxruntime)==' constraints.txt)
	@touch $@

# optimum-intel requires torchvision, which nothing here uses, and whose CUDA build fails to load beside a CPU build of torch.
build/openvino/ready: constraints.txt
	$(PYTHON) -m venv build/openvino
	build/openvino/bin/pip install --quiet -e . openvino-genai==2026.4.1.0 optimum-intel==2.2.0 diffusers==0.39.0 accelerate \
		$(shell grep -E '^(torch|onnxruntime)==' constraints.txt)
	build/openvino/bin/pip uninstall --quiet --yes torchvision
	@touch $@

bench: $(READY) $(OTHERS) ## Measure koala-tiny and KOALA-700M at 256 px on this CPU beside PyTorch, ONNX Runtime and OpenVINO
	$(BIN)/koala build examples/koala-tiny/checkpoint build/bundle --steps 10 --guidance-scale 2 --target cpu
	$(BIN)/koala bench examples/koala-tiny/checkpoint build/bundle --output bench/results/cpu-koala-tiny $(PYTHONS) $(BENCH)
	$(BIN)/koala build koala-lightning-700m build/bench-700m --random-weights --no-gate --height 256 --width 256 --target cpu
	$(BIN)/koala bench koala-lightning-700m build/bench-700m --random-weights --alone --rounds 6 --steps 4 \
		--output bench/results/cpu-koala-700m-256px $(PYTHONS) $(BENCH)
	$(BIN)/python -m koala_bench.readme bench/results/cpu-koala-tiny/results.json README.md

bench-gpu: $(READY) ## Measure a full-size model on this GPU beside PyTorch: make bench-gpu [MODEL=...] [WEIGHTS=] [BENCH=...]
	$(BIN)/koala build $(MODEL) build/bench-gpu $(WEIGHTS) --no-gate $(ARGS)
	$(BIN)/koala bench $(MODEL) build/bench-gpu $(WEIGHTS) --output $(RESULTS) $(BENCH)
	$(BIN)/koala bench $(MODEL) build/bench-gpu $(WEIGHTS) --output $(RESULTS) --rounds 5 --steps-sweep $(STEPS) $(BENCH)

check: $(READY) ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## Build the documentation into build/site, with every link checked
	$(BIN)/python docs/build_site.py

clean: ## Remove what was built, and the environment
	rm -rf .venv build bundles koala.png .mypy_cache .ruff_cache .import_linter_cache .cache
