"""What the tests of the null driver do in its process: draw, make calls fail, change the source and draw."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koala_bundle.codec import to_json
from koala_bundle.engine_record import ENGINE_RECORD, engine_folder, read_engine_record
from koala_bundle.errors import DeviceError, KoalaError
from koala_bundle.targets import CPU, RTX
from koala_runtime import Pipeline
from koala_runtime.devices.cuda import CudaDevice
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
    (folder / ENGINE_RECORD).write_text(json.dumps(to_json(changed)))
    return copy


# --- ways to draw


def plain(pipe: Pipeline, **arguments: Any) -> Images:
    return np.asarray(pipe(PROMPT, seed=3, **{"num_inference_steps": 1, "output_type": "np"} | arguments).images)


def timed(pipe: Pipeline) -> Images:
    return plain(pipe, timings=True)


def stepped(pipe: Pipeline) -> Images:
    steps = pipe.steps(PROMPT, seed=3, num_inference_steps=1, output_type="np")
    with steps:
        for step in steps:
            step.preview()
            step.latents = step.latents
    return np.asarray(steps.output.images)


def device_output(pipe: Pipeline) -> Images:
    held, device = pipe(PROMPT, seed=3, num_inference_steps=1, output_type="device").images, pipe.executor.device
    with device.current():
        pinned = device.pin(int(np.prod(held.shape)))
        try:
            device.copy_out(pinned, held.address)
            device.wait()
            return pinned.reshape(held.shape).astype(np.float32) / np.float32(255)
        finally:
            device.unpin(pinned)


def after_a_stream(pipe: Pipeline) -> Images:
    return plain(pipe, stream=0)


def many_steps(pipe: Pipeline) -> Images:
    for count in (2, 3, 4, 5):
        plain(pipe, num_inference_steps=count)
    return plain(pipe)


WAYS: dict[str, tuple[Callable[[Pipeline], Images], dict[str, Any]]] = {
    "plain": (plain, {}),
    "low memory": (plain, {"low_memory": True}),
    "timed": (timed, {}),
    "timed in low memory": (timed, {"low_memory": True}),
    "stepped": (stepped, {}),
    "device output": (device_output, {}),
    "after a stream": (after_a_stream, {}),
    "many step counts": (many_steps, {}),
}


@dataclass
class Seen:
    """What came of a scenario: pictures, calls (of the last picture), the most device memory, and what went wrong."""

    pictures: list[Images] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    peak: int = 0
    wrong: list[str] = field(default_factory=list)


def draw(bundle: Path, way: str, count: int = 3, **arguments: Any) -> Seen:
    """Draw ``count`` pictures and close."""
    seen, (function, options) = Seen(), WAYS[way]
    driver = nulldriver.driver
    driver.memory(24 << 30)
    with Pipeline(bundle, "rtx", **options) as pipe:
        for _ in range(count):
            driver.calls()
            seen.pictures.append(function(pipe, **arguments))
        seen.calls = driver.calls()
    del pipe
    gc.collect()
    seen.peak = driver.memory(24 << 30)
    seen.wrong = _wrong()
    return seen


def _wrong() -> list[str]:
    live, left = nulldriver.driver.live()
    found = nulldriver.driver.violations()
    if live or left:
        found.append(f"alive: {live}, lost with its context: {left}")
    if len(stand_in.loggers) > 1:
        found.append(f"{len(stand_in.loggers)} loggers")
    nulldriver.driver.reset()
    return found


# --- failures


@dataclass(frozen=True)
class Outcome:
    """One failed call: which, when, the error, what the next picture was, and what was left behind or lost."""

    number: int
    function: str
    during: str
    error: str
    again: str
    live: dict[str, int]
    left: dict[str, int]
    violations: list[str]


def fail_each(
    bundle: Path, way: str, wanted: Images, status: int, *, sticky: bool = False, functions: bool = False
) -> list[Outcome]:
    """Open, draw twice and close, with one call after the other made to fail; or only each function's first and last.

    After a failure that passes, another picture is drawn.
    """
    driver, outcomes = nulldriver.driver, []
    driver.reset()
    _story(bundle, way)
    calls, start = driver.calls(), 0
    last = {name: index for index, name in enumerate(calls)}
    first = {name: index for index, name in reversed([*enumerate(calls)])}
    chosen = {*first.values(), *last.values()} if functions else range(len(calls))
    for index in sorted(chosen)[start:]:
        driver.fail(index + 1, status, sticky=sticky)
        error, again, during, pipe = "", "", "opening", None
        function, options = WAYS[way]
        try:
            pipe = Pipeline(bundle, "rtx", **options)
            during = "drawing"
            for _ in range(2):
                if not np.array_equal(function(pipe), wanted):
                    again = "another picture"
            during = "closing"
            pipe.close()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}" if isinstance(failure, KoalaError) else repr(failure)
        if pipe is not None:
            if during == "drawing" and not sticky:
                again = _again(pipe, function, wanted)
            pipe.close()
        pipe = None
        driver.fail(0)
        gc.collect()
        live, left = driver.live()
        outcomes.append(Outcome(index, calls[index], during, error, again, live, left, driver.violations()))
        driver.reset()
    return outcomes


def _story(bundle: Path, way: str) -> None:
    function, options = WAYS[way]
    nulldriver.driver.calls()
    with Pipeline(bundle, "rtx", **options) as pipe:
        function(pipe)
        function(pipe)


def _again(pipe: Pipeline, function: Callable[[Pipeline], Images], wanted: Images) -> str:
    try:
        return "the same" if np.array_equal(function(pipe), wanted) else "another picture"
    except DeviceError as error:
        return f"refused: {error}"


# --- changed sources


@contextmanager
def changed(module: str, old: str, new: str) -> Iterator[None]:
    """Put a changed text in the place of a module's functions."""
    owner = importlib.import_module(module)
    text = inspect.getsource(owner)
    assert text.count(old) == 1, f"{text.count(old)} times in {module}: {old}"
    made: dict[str, Any] = {"__name__": module, "__file__": owner.__file__}
    exec(compile(text.replace(old, new), str(owner.__file__), "exec"), made)
    before: list[tuple[Any, str, Any]] = []
    for name, value in made.items():
        current = getattr(owner, name, None)
        if inspect.isclass(value) and value.__module__ == module:
            pairs = ((current, attribute, each) for attribute, each in vars(value).items() if callable(each))
        else:
            pairs = ((owner, name, value) for _ in range(inspect.isfunction(value) and value.__module__ == module))
        for place, attribute, function in pairs:
            before.append((place, attribute, vars(place)[attribute]))
            setattr(place, attribute, function)
    try:
        yield
    finally:
        for place, attribute, function in before:
            setattr(place, attribute, function)


def draw_changed(bundle: Path, wanted: Images, module: str, old: str, new: str, ways: tuple[str, ...]) -> list[str]:
    """Draw in these ways with a changed module; return what was wrong."""
    driver, found = nulldriver.driver, []
    driver.reset()
    with changed(module, old, new):
        for way in ways:
            try:
                seen = draw(bundle, way)
                found += seen.wrong
                found += ["another picture"] * any(not np.array_equal(each, wanted) for each in seen.pictures)
                launches = seen.calls.count("cuGraphLaunch")
                found += [f"{launches} launches"] * (way == "plain" and launches != 1)
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
            gc.collect()
            found += _wrong()
    return found


def caller_context(bundle: Path, device: int | str | None) -> tuple[bool, list[str]]:
    """Draw with a context of the caller's own current; return whether it still is, and what was wrong."""
    from cuda.bindings import driver as cuda

    nulldriver.driver.library.null_context.restype = cuda_pointer = __import__("ctypes").c_void_p
    own = nulldriver.driver.library.null_context(0)
    assert cuda_pointer and int(cuda.cuCtxPushCurrent(cuda.CUcontext(own))[0]) == 0
    with Pipeline(bundle, "rtx", device=device) as pipe:
        plain(pipe)
    _, current = cuda.cuCtxPopCurrent()
    return int(current) == own, _wrong()


def open_device(device: int | str) -> str:
    """Open a GPU, and return its name or the refusal."""
    try:
        opened = CudaDevice(device)
    except KoalaError as error:
        return f"{type(error).__name__}: {error}"
    opened.close()
    return opened.gpu.name
