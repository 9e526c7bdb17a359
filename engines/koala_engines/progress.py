"""The compiler's own progress and log, as plain callables.

The base classes come from whichever TensorRT is used, so both classes are made when its module is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """Return an IProgressMonitor that calls ``progress`` with the part done, 0 to 1, over nested phases.

    Ctrl-C ends the build at the compiler's next step: ``interrupted`` is then True.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._phases: dict[str, tuple[int, int]] = {}  # name -> (steps done, steps in all), outermost first
            self._reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (0, max(num_steps, 1))

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._phases:
                    self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
                self._report()
            except KeyboardInterrupt:  # must not pass through the compiler's frames
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _report(self) -> None:
            done, share = 0.0, 1.0
            for steps, total in self._phases.values():
                done += share * min(steps / total, 1.0)
                share /= total
            # Phases end and begin anew; a bar only ever moves forward.
            self._reported = max(self._reported, min(done, 1.0))
            progress(self._reported)

    return Monitor()


def make_logger(trt: Any) -> tuple[Any, list[str]]:
    """Return an ILogger and the list to which it adds each error the compiler reports."""
    complaints: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                complaints.append(message)

    return Logger(), complaints
