"""The runtime as a product embeds it: no torch in the process, pictures that repeat, calls that queue.

On the cpu target, in float32, with the smallest checkpoint; what the pictures are is ``test_parity``'s.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from koala_bundle.errors import KoalaError
from koala_engines.cpu import prepare
from koala_runtime import Pipeline, read_recipe
from koala_runtime.pipeline import _KEPT_RUNS
from koala_runtime.samplers import Schedule

SHAPE = "koala-700m-like"
CAT = "a photo of a cat"
FORBIDDEN = ("accelerate", "diffusers", "koala_engines", "koala_export", "onnx", "torch", "transformers")


@pytest.fixture(scope="module")
def pipeline(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE)) as opened:
        yield opened


def draw(pipeline: Pipeline, prompt: Any = CAT, *, seed: int | None = 0, **arguments: Any) -> NDArray[np.float32]:
    images = pipeline(prompt, seed=seed, output_type="np", **arguments).images
    assert images.dtype == np.float32
    return images  # type: ignore[no-any-return]


def embedded(code: str, *arguments: object) -> list[str]:
    """Run ``code`` in a fresh interpreter and return which forbidden packages it has loaded at its end."""
    listing = f"import json; print(json.dumps([name for name in {FORBIDDEN} if name in sys.modules]))"
    command = [sys.executable, "-c", f"import sys\n{code}\n{listing}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_call_loads_nothing_of_the_exporter(bundle: Callable[..., Path]) -> None:
    code = """
from koala_runtime import Pipeline
with Pipeline(sys.argv[1], "cpu") as pipeline:
    assert len(pipeline("a cat", seed=0, num_inference_steps=2).images) == 1
assert "onnxruntime" in sys.modules
"""
    assert embedded(code, bundle(SHAPE)) == []
    assert embedded("import onnx") == ["onnx"], "the listing can find something"


def test_the_command_line_loads_nothing_of_the_exporter(bundle: Callable[..., Path], tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    code = """
from koala_cli.main import run_app
assert run_app(["run", sys.argv[1], "a cat", "--seed", "3", "--steps", "2", "--output", sys.argv[2]]) == 0
"""
    assert embedded(code, bundle(SHAPE), picture) == []
    with Image.open(picture) as image:
        assert image.size == (96, 64)
    recipe = read_recipe(picture)
    assert (recipe.prompt, recipe.seed) == ("a cat", 3)


def test_pictures_are_pil_or_numpy(pipeline: Pipeline) -> None:
    prompts = [CAT, "a koala"]
    images = draw(pipeline, prompts)
    assert images.shape == (2, 64, 96, 3)
    assert 0 <= images.min() < images.max() <= 1
    pictures = pipeline(prompts, seed=0).images
    assert [(type(picture), picture.size, picture.mode) for picture in pictures] == [(Image.Image, (96, 64), "RGB")] * 2
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), (images * 255).round())


def test_a_seed_repeats_its_picture(pipeline: Pipeline) -> None:
    assert pipeline(CAT, seed=5).seed == 5
    assert np.array_equal(draw(pipeline, seed=5), draw(pipeline, seed=5))
    assert not np.array_equal(draw(pipeline, seed=5), draw(pipeline, seed=6))


def test_no_seed_draws_one_and_tells_it(pipeline: Pipeline) -> None:
    first, second = (pipeline(CAT, output_type="np") for _ in range(2))
    assert first.seed != second.seed
    assert not np.array_equal(first.images, second.images)
    assert np.array_equal(first.images, draw(pipeline, seed=first.seed))


def test_a_seed_may_be_numpys(pipeline: Pipeline) -> None:
    seed: Any = np.int32(5)
    assert np.array_equal(draw(pipeline, seed=seed), draw(pipeline, seed=5))


def test_given_latents_have_no_seed(pipeline: Pipeline) -> None:
    assert pipeline(CAT, latents=np.ones((1, 4, 8, 12), np.float32), seed=1).seed is None


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_the_callback_sees_every_step(pipeline: Pipeline, steps: int) -> None:
    seen: list[Any] = []
    kept: list[NDArray[np.float32]] = []

    def watch(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep))
        kept.append(tensors["latents"])
        return {}

    watched = draw(pipeline, num_inference_steps=steps, callback_on_step_end=watch)
    assert seen == list(enumerate(pipeline.scheduler.table(Schedule(steps)).timesteps))
    assert all(latents.shape == (1, 4, 8, 12) and latents.dtype == np.float32 for latents in kept)
    assert len({latents.tobytes() for latents in kept}) == steps, "each call has latents of its own"
    assert np.array_equal(watched, draw(pipeline, num_inference_steps=steps)), "looking changes nothing"


@pytest.mark.parametrize("at", [0, 2, 3])
def test_latents_that_the_callback_returns_are_used(pipeline: Pipeline, at: int) -> None:
    def wipe(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": np.zeros_like(tensors["latents"])} if step == at else {}

    wiped = [draw(pipeline, seed=seed, callback_on_step_end=wipe) for seed in (0, 1)]
    assert np.array_equal(*wiped), "nothing of the seed is left"
    assert not np.array_equal(wiped[0], draw(pipeline, seed=0))


def test_a_callback_that_fails_leaves_the_pipeline_usable(pipeline: Pipeline) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise RuntimeError("stop here")

    before = draw(pipeline)
    with pytest.raises(RuntimeError, match="stop here"):
        draw(pipeline, seed=1, callback_on_step_end=fail)
    assert np.array_equal(draw(pipeline), before)


def test_numbers_of_steps_take_turns(pipeline: Pipeline) -> None:
    """Graphs are kept for the last few numbers of steps; neither keeping nor dropping them shows in a picture."""
    counts = range(1, _KEPT_RUNS + 3)
    first = {steps: draw(pipeline, num_inference_steps=steps) for steps in counts}
    assert len({picture.tobytes() for picture in first.values()}) == len(counts)
    for steps in [4, 2, 4, 2, *counts, *reversed(counts)]:
        assert np.array_equal(draw(pipeline, num_inference_steps=steps), first[steps])
        assert len(pipeline._runs) <= _KEPT_RUNS


def test_threads_queue(pipeline: Pipeline) -> None:
    calls = [{"prompt": f"cat {n}", "seed": n, "num_inference_steps": 1 + n % 3} for n in range(12)]
    serial = [draw(pipeline, **call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        threaded = [*pool.map(lambda call: draw(pipeline, **call), calls)]
    for one, other in zip(serial, threaded, strict=True):
        assert np.array_equal(one, other)


def test_a_closed_pipeline_says_so(bundle: Callable[..., Path]) -> None:
    closed = Pipeline(bundle(SHAPE))
    closed.close()
    closed.close()  # a second time does no harm
    with pytest.raises((KoalaError, RuntimeError), match="closed"):
        draw(closed)


def test_half_precision_runs_widened(bundle: Callable[..., Path], pipeline: Pipeline) -> None:
    with Pipeline(bundle(SHAPE, precision="fp16")) as half:
        for prompt in (CAT, "", "a koala"):
            difference = np.abs(draw(half, prompt) - draw(pipeline, prompt))
            # Weights rounded to 2^-11, sums in float32.
            assert 0 < difference.mean() < 2 / 255


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "denoiser", "vae_decoder"])
def test_widening_is_exact(bundle: Callable[..., Path], tmp_path: Path, component: str) -> None:
    source = bundle(SHAPE, precision="fp16") / "onnx" / f"{component}.onnx"
    result = tmp_path / "wide.onnx"
    prepare(source, result)
    narrow, wide = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (source, result)
    )
    assert narrow.keys() <= wide.keys()  # and the constants of group norms
    assert any(values.dtype == np.float16 for values in narrow.values())
    for name, values in narrow.items():
        assert wide[name].dtype == (np.float32 if values.dtype == np.float16 else values.dtype), name
        assert np.array_equal(wide[name], values), name
    session = ort.InferenceSession(result, providers=["CPUExecutionProvider"])
    types = {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())}
    assert types <= {"tensor(float)", "tensor(int32)", "tensor(uint8)"}
