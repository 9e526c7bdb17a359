"""What the tests of the null driver do in its process: draw, make calls fail, change the source and draw."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import koala_runtime.pipeline
from koala_bundle.engine_record import ENGINE_RECORD, engine_folder, read_engine_record
from koala_bundle.errors import DeviceError, KoalaError
from koala_bundle.files import write_sealed
from koala_bundle.targets import CPU, RTX
from koala_runtime import Pipeline
from tests.support import nulldriver
from tests.support.nulldriver import stand_in

PROMPT = "a large red circle on a white background"
Images = NDArray[Any]


def add_rtx_engines(bundle: Path, copy: Path) -> Path:
    """Copy a bundle in float32 and give it plans for the stand-in: those of its cpu target."""
    shutil.copytree(bundle, copy)
    folder = shutil.copytree(engine_folder(copy, CPU), engine_folder(copy, RTX))
    record = read_engine_record(copy, CPU)
    options = {**record.key.options, "compute_capabilities": "8.9"}
    key = replace(record.key, compiler="tensorrt_rtx", compiler_version=stand_in.VERSION, options=options)
    plans = {
        name: replace(plan, activation_bytes=stand_in.activation_bytes(folder / plan.files[0]))
        for name, plan in record.plans.items()
    }
    changed = replace(record, target=RTX.name, key=key, plans=plans)
    write_sealed(folder / ENGINE_RECORD, changed)
    return copy


# --- ways to draw


SEEDS = (3, 4, 3)


def plain(pipe: Pipeline, seed: int, **arguments: Any) -> Images:
    return np.asarray(pipe(PROMPT, seed=seed, **{"num_inference_steps": 1, "output_type": "np"} | arguments).images)


def timed(pipe: Pipeline, seed: int) -> Images:
    return plain(pipe, seed, timings=True)


def stepped(pipe: Pipeline, seed: int) -> Images:
    with pipe.steps(PROMPT, seed=seed, num_inference_steps=1, output_type="np") as steps:
        for step in steps:
            step.preview()
            step.latents = step.latents
    return np.asarray(steps.output.images)


def device_output(pipe: Pipeline, seed: int) -> Images:
    held = pipe(PROMPT, seed=seed, num_inference_steps=1, output_type="device").images
    device = pipe.executor.device
    with device.current():
        pinned = device.pin(math.prod(held.shape))
        try:
            device.copy_out(pinned, held.address)
            device.wait()
            return pinned.reshape(held.shape).astype(np.float32) / np.float32(255)
        finally:
            device.unpin(pinned)


def after_a_stream(pipe: Pipeline, seed: int) -> Images:
    return plain(pipe, seed, stream=0)


def many_steps(pipe: Pipeline, seed: int) -> Images:
    for count in range(2, koala_runtime.pipeline._KEPT_RUNS + 2):  # so that the first picture's memory is given up
        plain(pipe, seed, num_inference_steps=count)
        plain(pipe, seed, num_inference_steps=count)
    plain(pipe, seed)
    return plain(pipe, seed)


def more_steps(pipe: Pipeline, seed: int) -> Images:
    """What is captured for one number of steps is void when another takes more memory."""
    plain(pipe, seed, num_inference_steps=1)
    picture = plain(pipe, seed, num_inference_steps=1)
    if seed == SEEDS[0]:
        plain(pipe, seed, num_inference_steps=40)
        picture = plain(pipe, seed, num_inference_steps=1)
    return picture


WAYS: dict[str, tuple[Callable[[Pipeline, int], Images], dict[str, Any]]] = {
    "plain": (plain, {}),
    "low memory": (plain, {"low_memory": True}),
    "timed": (timed, {}),
    "timed in low memory": (timed, {"low_memory": True}),
    "stepped": (stepped, {}),
    "device output": (device_output, {}),
    "after a stream": (after_a_stream, {}),
    "many step counts": (many_steps, {}),
    "more and more steps": (more_steps, {}),
}


def sampled(name: str, steps: int) -> Callable[[Pipeline, int], Images]:
    """Draw three rows of a sampler, after three of Euler, which has no history and no noise of its own."""

    def function(pipe: Pipeline, seed: int) -> Images:
        plain(pipe, seed, num_inference_steps=3)
        return plain(pipe, seed, num_inference_steps=steps, scheduler=name)

    return function


SAMPLED: dict[str, tuple[Callable[[Pipeline, int], Images], dict[str, Any]]] = {
    "history": (sampled("unipc", 3), {}),
    "noise in every row": (sampled("euler_a", 3), {}),
    "noise in some rows": (sampled("dpm2_a", 2), {}),
    "history and noise": (sampled("dpmpp_3m_sde_karras", 3), {}),
}
"""Samplers with what Euler lacks."""


def from_a_picture(*, masked: bool) -> Callable[[Pipeline, int], Images]:
    """Draw from a picture, after one from noise."""

    def function(pipe: Pipeline, seed: int) -> Images:
        levels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        cover = {"mask_image": levels[..., 0] > 99} if masked else {}
        plain(pipe, seed, num_inference_steps=3)
        return plain(pipe, seed, num_inference_steps=4, image=levels, strength=0.8, scheduler="euler_a", **cover)

    return function


PAINTED: dict[str, tuple[Callable[[Pipeline, int], Images], dict[str, Any]]] = {
    "from a picture": (from_a_picture(masked=False), {}),
    "with a mask": (from_a_picture(masked=True), {}),
    "with a mask in low memory": (from_a_picture(masked=True), {"low_memory": True}),
}
"""Of a bundle with the VAE's encoder."""


@dataclass
class Seen:
    """What came of drawing a picture for each of SEEDS.

    ``calls`` are those of the last picture, ``held`` is what was alive after it, ``peak`` the most device memory in
    use, ``wrong`` what a GPU would have punished and what was left behind.
    """

    pictures: list[Images] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    wrong: list[str] = field(default_factory=list)


def draw(bundle: Path, way: str) -> Seen:
    seen, (function, options), driver = Seen(), {**WAYS, **SAMPLED, **PAINTED}[way], nulldriver.driver
    driver.reset()
    driver.memory(24 << 30)
    with Pipeline(bundle, "rtx", **options) as pipe:
        for seed in SEEDS:
            driver.calls()
            seen.pictures.append(function(pipe, seed))
        seen.calls, (seen.held, _) = driver.calls(), driver.live()
    del pipe
    gc.collect()
    seen.peak, seen.wrong = driver.memory(24 << 30), wrong()
    return seen


def wrong() -> list[str]:
    """Return what is wrong after everything was closed, and forget it."""
    driver = nulldriver.driver
    found, (live, left) = driver.violations(), driver.live()
    found += [f"alive: {live}, lost with its context: {left}"] * bool(live or left)
    found += [f"{len(stand_in.loggers)} loggers"] * (len(stand_in.loggers) > 1)
    found += ["a context is current"] * bool(current())
    driver.reset()
    return found


def current() -> int:
    context = ctypes.c_void_p()
    nulldriver.driver.library.cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0


# --- failures


@dataclass(frozen=True)
class Outcome:
    """One failed call: which, when, the error, what was alive after it, what the next picture was.

    ``live`` and ``left`` are what was alive after closing, or when the context was destroyed.
    """

    function: str
    during: str
    error: str
    held: dict[str, int]
    again: str
    live: dict[str, int]
    left: dict[str, int]
    violations: list[str]


def fail_each(
    bundle: Path, way: str, wanted: list[Images], status: int, functions: Sequence[str] = (), *, sticky: bool = False
) -> list[Outcome]:
    """Open, draw two pictures and close, with one call after the other made to fail, or the first of ``functions``.

    After a failure that passes, another picture is drawn; after a fault, which is ``sticky``, by another pipeline.
    """
    driver, outcomes, (function, options) = nulldriver.driver, [], WAYS[way]
    driver.reset()
    with Pipeline(bundle, "rtx", **options) as pipe:
        for seed in SEEDS[:2]:
            function(pipe, seed)
    calls = driver.calls()
    indices = sorted(calls.index(name) for name in functions if name in calls) or range(len(calls))
    for index in indices:
        error, again, during, held, opened = "", "", "opening", dict[str, int](), None
        driver.fail(index + 1, status, sticky=sticky)
        try:
            opened = Pipeline(bundle, "rtx", **options)
            during = "drawing"
            for seed, right in zip(SEEDS, wanted[:2], strict=False):
                if not np.array_equal(function(opened, seed), right):
                    again = "another picture instead of an error"
            during = "closing"
            opened.close()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}" if isinstance(failure, KoalaError) else repr(failure)
        driver.fail(0)
        if opened is not None:
            held, _ = driver.live()
            if during == "drawing" and not sticky:
                again = _again(opened, function, wanted[0])
            opened.close()
        opened = None
        gc.collect()
        if sticky:
            with Pipeline(bundle, "rtx", **options) as fresh:
                again = again or _again(fresh, function, wanted[0])
            del fresh
        live, left = driver.live()
        outcomes.append(Outcome(calls[index], during, error, held, again, live, left, driver.violations()))
        driver.reset()
    return outcomes


def _again(pipe: Pipeline, function: Callable[[Pipeline, int], Images], wanted: Images) -> str:
    try:
        return "the same" if np.array_equal(function(pipe, SEEDS[0]), wanted) else "another picture"
    except DeviceError as error:
        return f"refused: {error}"
