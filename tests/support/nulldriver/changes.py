"""In the process of the null driver: single situations, and drawing with a changed source."""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import DeviceError, KoalaError
from koala_machine.driver import current_gpu, used_bytes
from koala_runtime import Pipeline
from koala_runtime.devices.cuda import CudaDevice
from tests.support import nulldriver
from tests.support.nulldriver import scenarios, stand_in
from tests.support.nulldriver.scenarios import Seen


def draw_with_a_context(bundle: Path) -> tuple[bool, list[str]]:
    """Draw while a context of the caller's own is current; return whether it still is, and what was wrong."""
    library = nulldriver.driver.library
    library.null_context.restype = ctypes.c_void_p
    own = library.null_context(0)
    library.cuCtxPushCurrent_v2(ctypes.c_void_p(own))
    with Pipeline(bundle, "rtx") as pipe:
        scenarios.plain(pipe, 3)
    kept = scenarios.current() == own
    return kept, [each for each in scenarios.wrong() if each != "a context is current"]


def interrupt(bundle: Path) -> list[str]:
    """Interrupt a picture when its graph has been launched, and close."""
    nulldriver.driver.reset()

    def interrupted(self: CudaDevice) -> None:
        CudaDevice.wait = wait  # type: ignore[method-assign]
        raise KeyboardInterrupt

    wait = CudaDevice.wait
    with suppress(KeyboardInterrupt), Pipeline(bundle, "rtx") as pipe:
        scenarios.plain(pipe, 3)
        CudaDevice.wait = interrupted  # type: ignore[method-assign]
        scenarios.plain(pipe, 4)
    del pipe
    return scenarios.wrong()


def release_in_use(_: Path) -> list[str]:
    """Release memory of both kinds while copies to and from it are enqueued."""
    nulldriver.driver.reset()
    device = CudaDevice()
    with device.current():
        address, pinned = device.allocate(256), device.pin(256)
        device.copy_in(address, pinned)
        device.release(address)
        device.wait()
        address = device.allocate(256)
        device.copy_out(pinned, address)
        device.unpin(pinned)
        device.wait()
        device.release(address)
    device.close()
    return scenarios.wrong()


def free_during_capture(_: Path) -> list[str]:
    """Capture work that leaves garbage whose finalizers free memory; and the first time it frees some itself."""
    nulldriver.driver.reset()
    device, tries = CudaDevice(), []

    class Garbage:
        def __init__(self, address: int) -> None:
            self.cycle, self.address = self, address

        def __del__(self) -> None:
            with suppress(DeviceError):
                device.release(self.address)

    def work() -> None:
        device.copy_in(address, pinned)
        if device.capturing:
            tries.append(len(tries))
            Garbage(spare.pop())
            assert [[] for _ in range(100)], "enough for a collection"
            if len(tries) == 1:
                with suppress(DeviceError):
                    device.release(spare.pop())

    threshold = gc.get_threshold()
    with device.current():
        address, pinned, spare = device.allocate(256), device.pin(256), [device.allocate(256) for _ in range(4)]
        gc.set_threshold(1)
        try:
            device.drop(device.capture([work]))
        finally:
            gc.set_threshold(*threshold)
            gc.collect()
    device.close()
    return [*scenarios.wrong(), *(["not tried twice"] * (tries != [0, 1]))]


SINGLE: dict[str, Callable[[Path], list[str]]] = {
    "interrupted": interrupt,
    "in use": release_in_use,
    "freed during capture": free_during_capture,
}


def draw_uncaptured(bundle: Path, component: str) -> Seen:
    """Draw with a plan that says that it cannot be captured."""
    stand_in.uncapturable.add(component)
    try:
        return scenarios.draw(bundle, "plain")
    finally:
        stand_in.uncapturable.clear()


def loads_in_low_memory(bundle: Path) -> int:
    """Return how many plans were loaded for two pictures."""
    nulldriver.driver.reset()
    load, loaded = stand_in.Runtime.deserialize_cuda_engine, []

    def counted(self: stand_in.Runtime, plan: Any) -> Any:
        loaded.append(plan.filename)
        return load(self, plan)

    stand_in.Runtime.deserialize_cuda_engine = counted  # type: ignore[method-assign]
    try:
        with Pipeline(bundle, "rtx", low_memory=True) as pipe:
            for seed in (3, 4):
                scenarios.plain(pipe, seed)
    finally:
        stand_in.Runtime.deserialize_cuda_engine = load  # type: ignore[method-assign]
    return len(loaded)


def open_device(device: int | str) -> str:
    """Open a GPU, and return its name or the refusal."""
    try:
        opened = CudaDevice(device)
    except KoalaError as error:
        return f"{type(error).__name__}: {error}"
    opened.close()
    return str(opened.gpu)


def make_current(device: int) -> tuple[bool, list[str]]:
    """Make a GPU current; return whether its primary context was, and what is wrong afterwards."""
    nulldriver.driver.reset()
    with current_gpu(device):
        seen, opened = scenarios.current(), CudaDevice(device)
        with opened.current():
            same = scenarios.current() == seen != 0
        opened.close()
    return same, scenarios.wrong()


def used_by_a_device(device: int) -> tuple[int, list[str]]:
    """Return by how much the memory in use grows when 1 MB is allocated, and what is wrong afterwards."""
    nulldriver.driver.reset()
    opened = CudaDevice(device)
    before = used_bytes(device)
    with opened.current():
        address = opened.allocate(1 << 20)
        after = used_bytes(device)
        opened.release(address)
    opened.close()
    assert before is not None
    assert after is not None
    return after - before, scenarios.wrong()


@contextmanager
def changed(module: str, old: str, new: str) -> Iterator[None]:
    """Put functions of a changed text in the place of a module's own, also where others have imported them."""
    owner = importlib.import_module(module)
    text = inspect.getsource(owner)
    assert text.count(old) == 1, f"{text.count(old)} times in {module}: {old}"
    made: dict[str, Any] = {"__name__": module, "__file__": owner.__file__}
    exec(compile(text.replace(old, new), str(owner.__file__), "exec"), made)
    before: list[tuple[Any, str, Any]] = []
    for name, value in made.items():
        if getattr(value, "__module__", None) != module:
            continue
        places = [getattr(owner, name)] if inspect.isclass(value) else _holders(getattr(owner, name), name)
        members = vars(value) if inspect.isclass(value) else {name: value}
        for place, (member, function) in product(places, members.items()):
            if inspect.isfunction(function):
                before.append((place, member, vars(place)[member]))
                setattr(place, member, function)
    try:
        yield
    finally:
        for place, member, function in before:
            setattr(place, member, function)


def _holders(value: Any, name: str) -> list[Any]:
    modules = [module for key, module in sys.modules.items() if key.startswith("koala_")]
    return [module for module in modules if vars(module).get(name) is value]


def draw_changed(bundle: Path, way: str, right: Seen, module: str, old: str, new: str) -> list[str]:
    """Draw with a changed module; return what was wrong, or differs from what is ``right``."""
    with changed(module, old, new):
        try:
            if way in SINGLE:
                return SINGLE[way](bundle)
            seen = scenarios.draw(bundle, way)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            del error
            gc.collect()
            return [found, *scenarios.wrong()]
    found = ["another picture"] * (not np.array_equal(seen.pictures, right.pictures))
    found += [f"held: {seen.held}"] * (seen.held != right.held)
    found += [f"peak: {seen.peak}"] * (seen.peak != right.peak)
    found += [f"calls: {seen.calls}"] * (way == "plain" and seen.calls != right.calls)
    return [*seen.wrong, *found]
