"""A compiler's own progress as a plain callable, and Ctrl-C while it works.

The base class comes from whichever TensorRT is used, so the class is made when its module is known.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag while the block runs; yields a function that returns the flag.

    An exception must not pass through the compiler's frames, which may be on the stack at any callback. Outside the
    main thread Python delivers no signals, and a caller may have it ignored: then nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def make_monitor(trt: Any, progress: Callable[[float], None], interrupted: Callable[[], bool]) -> Any:
    """Return an IProgressMonitor that calls ``progress`` with the part done, 0 to 1, over nested phases.

    It ends the build at the compiler's next step once ``interrupted`` says so.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, tuple[int, int]] = {}  # name -> (steps done, steps in all), outermost first
            self._reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (0, max(num_steps, 1))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
            self._report()
            return not interrupted()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _report(self) -> None:
            done, share = 0.0, 1.0
            for steps, total in self._phases.values():
                done += share * min(steps / total, 1.0)
                share /= total
            # Phases end and start again; a bar must only move forward.
            self._reported = max(self._reported, min(done, 1.0))
            progress(self._reported)

    return Monitor()
