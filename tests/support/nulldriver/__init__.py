"""A CUDA driver without a GPU: ``libcuda.so.1`` in C, and the process in which the runtime uses it.

Device memory cannot be read by the host and holds NaN, work runs only when its stream is waited for, capture obeys the
driver's rules, and every call is counted and can be made to fail. Code that is written on the driver API, as
``koala_runtime.devices.cuda`` is, runs on it as it is; TensorRT is a stand-in (``stand_in``).

A process that loaded this library keeps it, so tests call functions of ``scenarios`` in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import koala_runtime.pipeline
from koala_runtime.prompts import PromptEncoder
from tests.support.nulldriver import stand_in

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
KINDS = ("device memory", "pinned memory", "streams", "events", "graphs", "executable graphs", "retained contexts")
LAUNCH_FAILED, OUT_OF_MEMORY, CAPTURE_INVALIDATED = 719, 2, 901  # CUresult


class NullDriver:
    """The library's functions for tests; see ``device.c``."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # found by its name from now on
        self.library.null_calls.restype = self.library.null_violations.restype = ctypes.c_char_p
        self.library.null_memory.restype = ctypes.c_size_t
        self.library.null_fail.restype = ctypes.c_long

    def fail(self, countdown: int, status: int = LAUNCH_FAILED, *, function: str = "", sticky: bool = False) -> int:
        """Make a call fail, the ``countdown``-th from now; return what was left of the countdown before."""
        return int(self.library.null_fail(function.encode(), ctypes.c_long(countdown), status, int(sticky)))

    def live(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return what is alive, and what was alive when its context was destroyed; without zeros."""
        counts = (ctypes.c_size_t * (2 * len(KINDS)))()
        self.library.null_live(counts)
        live, left = counts[: len(KINDS)], counts[len(KINDS) :]
        return _named(live), _named(left)

    def memory(self, nbytes: int, device: int = 0) -> int:
        """Set the memory of a GPU; return the most that was in use since the call before."""
        return int(self.library.null_memory(device, ctypes.c_size_t(nbytes)))

    def calls(self) -> list[str]:
        """Return the calls since the last time."""
        return self.library.null_calls().decode().split()

    def violations(self) -> list[str]:
        """Return what a GPU would have punished, and misuse of TensorRT, since the last time."""
        found = [*self.library.null_violations().decode().splitlines(), *stand_in.problems]
        stand_in.problems.clear()
        return found

    def reset(self) -> None:
        """Forget faults and everything that is alive."""
        self.library.null_reset()
        stand_in.problems.clear()
        stand_in.loggers.clear()


driver: NullDriver
"""In a process of ``null_process``."""


def compile_driver(folder: Path) -> Path:
    path = folder / "libcuda.so.1"
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared"]
    subprocess.run(["cc", *flags, f"-Wl,-soname,{path.name}", "-o", path, *SOURCES, "-ldl", "-lpthread"], check=True)
    return path


@contextmanager
def null_process(library: Path, **environment: str) -> Iterator[Callable[..., Any]]:
    """Give a function that calls another with arguments in a new process that has this driver.

    ``environment``: NULL_GPUS and NULL_CUDA, see ``device.c``.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _install, (library, environment)) as pool:
        yield lambda function, *arguments, **named: pool.submit(_call, function, arguments, named).result()


def _install(library: Path, environment: dict[str, str]) -> None:
    global driver
    os.environ |= environment
    driver = NullDriver(library)
    stand_in.install(driver.library)
    # Half of the time of opening a small bundle is that of its tokenizers, on which nothing here depends.
    koala_runtime.pipeline.PromptEncoder = cache(PromptEncoder)  # type: ignore[assignment, misc]
    koala_runtime.pipeline._KEPT_RUNS = 2


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **named)
    except Exception:  # not every one can be pickled
        raise AssertionError(traceback.format_exc()) from None


def _named(counts: list[int]) -> dict[str, int]:
    return {kind: count for kind, count in zip(KINDS, counts, strict=True) if count}
