"""Forked children, copies, files changed under an open pipeline, and values that go wrong."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koala_bundle.errors import ArgumentError, BundleError, DeviceError, KoalaError
from koala_runtime import Pipeline
from tests.system.cases.support import outcome

SHAPE = "koala-700m-like"
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
FORKING = """
import os, sys, threading, time
from koala_runtime import KoalaError, Pipeline
pipe = Pipeline(sys.argv[1], "cpu")
pipe("a cat", num_inference_steps=1)
steps = pipe.steps("a cat", num_inference_steps=3)
if {loop}:
    next(steps)
if {thread}:
    threading.Thread(target=lambda: [pipe("a cat", num_inference_steps=8) for _ in range(4)], daemon=True).start()
    time.sleep(0.1)
child = os.fork()
if child == 0:
    try:
        {body}
    except KoalaError as error:
        print("child:", error, flush=True)
    sys.exit(7)
until = time.monotonic() + 20
while time.monotonic() < until:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        print("code", os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    print("hangs")
os._exit(0) if {thread} else None
steps.close()
pipe("a cat", num_inference_steps=1)
pipe.close()
print("parent draws")
"""


def forked(bundle: Path, body: str, *, loop: bool = False, thread: bool = False) -> str:
    program = FORKING.format(body=body, loop=loop, thread=thread)
    command = [sys.executable, "-W", "ignore", "-c", program, str(bundle)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


REFUSED = "child: the pipeline: expected to be used in the process that opened it, found a forked child"


@forks
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", ""),
        ("pipe('a dog')", REFUSED),
        ("pipe.close(); pipe.close()", ""),
        ("next(pipe.steps('a dog'))", REFUSED),
        ("del pipe, steps; import gc; gc.collect()", ""),
    ],
    ids=["exits", "draws", "closes", "steps", "drops"],
)
def test_a_child(bundle: Callable[..., Path], body: str, said: str) -> None:
    shown = forked(bundle(SHAPE), body)
    assert shown.endswith("code 7\nparent draws\n")
    assert shown.startswith(said)


@forks
def test_a_child_of_a_loop(bundle: Callable[..., Path]) -> None:
    assert forked(bundle(SHAPE), "next(steps)", loop=True).startswith(REFUSED)


@forks
def test_a_child_while_a_thread_draws(bundle: Callable[..., Path]) -> None:
    shown = forked(bundle(SHAPE), "pipe.close(); pipe('a dog')", thread=True)
    assert shown.startswith(REFUSED)
    assert "code 7" in shown


@forks
def test_a_child_that_opens_its_own(bundle: Callable[..., Path]) -> None:
    body = "Pipeline(sys.argv[1], 'simulated')('a dog', num_inference_steps=1); print('drawn', flush=True)"
    assert forked(bundle(SHAPE), body).startswith("drawn\ncode 7\n")


SPAWNING = """
import multiprocessing, sys
from koala_runtime import ArgumentError, Pipeline

def work(path):
    with Pipeline(path, "cpu") as pipe:
        print(len(pipe("a cat", num_inference_steps=1).images), "drawn", flush=True)
        pipe(3)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            pool.apply(work, [sys.argv[1]])
        except ArgumentError as error:
            print(error.what, "|", error)
"""


def test_a_spawned_child_draws_and_its_error_comes_back(bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "spawning.py").write_text(SPAWNING)
    command = [sys.executable, str(tmp_path / "spawning.py"), str(bundle(SHAPE))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("1 drawn\nprompt | prompt: expected text, or a list of texts, found 3; "), done.stderr


@pytest.mark.parametrize("kind", [ArgumentError, BundleError, DeviceError, KoalaError])
def test_errors_are_pickled_whole(kind: type[KoalaError]) -> None:
    error = kind("a", expected="b", found="c", fix="d")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(again), str(again), again.fix) == (kind, str(error), "d")


# --- copies


@pytest.fixture(scope="module")
def pipe(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE), "cpu") as opened:
        yield opened


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused(pipe: Pipeline, act: Callable[[Pipeline], object]) -> None:
    with pytest.raises(KoalaError, match="found a copy or a pickle of it"):
        act(pipe)
    assert pipe("a cat", num_inference_steps=1).images


def test_a_pipeline_as_an_argument_of_a_process(pipe: Pipeline) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(KoalaError, match="a copy or a pickle"):
        pool.apply(len, [pipe])


# --- files changed in place


@pytest.fixture
def own(tmp_path: Path, bundle: Callable[..., Path]) -> Path:
    return shutil.copytree(bundle(SHAPE), tmp_path / "bundle")


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "cut": lambda path: os.truncate(path, 100),
    "replaced": lambda path: shutil.move(shutil.copy(path, f"{path}.new"), path),
    "removed": lambda path: path.unlink(),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
}


@pytest.mark.parametrize("name", ["denoiser.onnx", "vae_decoder.onnx.data", "text_encoder.onnx"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_changed_under_an_open_pipeline(own: Path, change: str, name: str) -> None:
    with Pipeline(own, "simulated", low_memory=True) as pipe:
        CHANGES[change](own / "engines/cpu" / name)
        with pytest.raises(BundleError, match=f"{name}: expected the file that was there when the pipeline was opened"):
            pipe("a cat", num_inference_steps=1)


def test_engines_replaced_by_the_command_leave_an_open_pipeline_alone(own: Path) -> None:
    from koala_cli.main import run_app

    with Pipeline(own, "cpu") as pipe:
        wanted = pipe("a cat", seed=0, num_inference_steps=2).images[0].tobytes()
        (own / "engines/cpu/engine.json").unlink()
        assert run_app(["engines", str(own), "--target", "cpu"]) == 0
        assert pipe("a cat", seed=0, num_inference_steps=2).images[0].tobytes() == wanted


# --- values


@pytest.mark.parametrize("guidance", [3e38, 3.4e38])
def test_a_guidance_without_a_picture(pipe: Pipeline, guidance: float) -> None:
    with pytest.raises(
        KoalaError, match=r"latents: expected finite values, found NaN or infinity from step \d of 4 on"
    ):
        pipe("a cat", guidance_scale=guidance, num_inference_steps=4)
    assert pipe("a cat", num_inference_steps=1).images, "the pipeline still works afterwards"


def test_a_guidance_without_a_picture_in_the_command(bundle: Callable[..., Path], tmp_path: Path) -> None:
    from koala_cli.main import run_app

    output = tmp_path / "x.png"
    command = ["run", str(bundle(SHAPE)), "a cat", "--guidance-scale", "3e38", "--output", str(output)]
    assert run_app(command) == 1
    assert not output.exists()


def test_the_step_is_named(pipe: Pipeline) -> None:
    """A loop of its own finds the same step."""
    first = None
    try:
        for step in pipe.steps("a cat", guidance_scale=1e30, num_inference_steps=6, seed=0):
            if first is None and not np.isfinite(step.latents).all():
                first = step.index + 1
    except KoalaError as error:
        assert f"from step {first} of 6 on" in str(error)
    said = outcome(lambda: pipe("a cat", guidance_scale=1e30, num_inference_steps=6, seed=0))
    assert (first is None) == (said is None)
    assert said is None or f"from step {first} of 6 on" in said


@pytest.mark.parametrize("timings", [False, True])
@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_every_way_to_draw_is_watched(bundle: Callable[..., Path], target: str, timings: bool) -> None:
    for low_memory in (False, True):
        with Pipeline(bundle(SHAPE), target, low_memory=low_memory) as pipe, pytest.raises(KoalaError, match="latents"):
            pipe("a cat", guidance_scale=3e38, num_inference_steps=2, timings=timings)


def test_latents_that_require_grad(pipe: Pipeline) -> None:
    import torch

    noise = torch.randn(1, 4, 8, 12, requires_grad=True)
    assert outcome(lambda: pipe("a cat", latents=noise, num_inference_steps=1)) in (None, *_latents_refused())


def _latents_refused() -> list[str]:
    return ["latents: expected an array of float32, found Tensor; pass a numpy array."]


RETURNED: dict[str, Any] = {
    "the array": lambda tensors: tensors["latents"],
    "a list": lambda tensors: [tensors],
    "text": lambda tensors: "latents",
    "a number": lambda tensors: 3,
    "True": lambda tensors: True,
}


@pytest.mark.parametrize("returned", RETURNED)
def test_a_callback_that_returns_no_dict(pipe: Pipeline, returned: str) -> None:
    with pytest.raises(ArgumentError, match="callback_on_step_end: expected a function that returns a dict"):
        pipe("a cat", num_inference_steps=1, callback_on_step_end=lambda *a: RETURNED[returned](a[3]))


@pytest.mark.parametrize("returned", [None, {}, {"prompt_embeds": 1}])
def test_a_callback_that_returns_nothing_of_use(pipe: Pipeline, returned: Any) -> None:
    assert pipe("a cat", num_inference_steps=1, callback_on_step_end=lambda *_: returned).images


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_callback_that_returns_no_numbers(pipe: Pipeline, value: float) -> None:
    latents = np.full((1, 4, 8, 12), value, np.float32)
    with pytest.raises(ArgumentError, match="latents: expected finite values"):
        pipe("a cat", num_inference_steps=2, callback_on_step_end=lambda *_: {"latents": latents})


def test_latents_that_are_too_large(pipe: Pipeline) -> None:
    with pytest.raises(KoalaError, match="latents"):
        pipe("a cat", latents=np.full((1, 4, 8, 12), 3e38, np.float32), num_inference_steps=2)
