"""A pipeline belongs to the process that opened it: a forked child has its memory, and none of its threads.

In a child, the threads that ONNX Runtime would join and the context of the CUDA driver do not exist, so that freeing
anything there would hang or crash. Whatever was open is left alone instead, to the end of the child.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from weakref import WeakSet

from koala_bundle.errors import KoalaError

_opened: WeakSet[object] = WeakSet()


class Owner:
    """The process that opens ``owned``, which this keeps from being freed in forked children."""

    def __init__(self, owned: object) -> None:
        self._process = os.getpid()
        _opened.add(owned)

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise KoalaError in any other process."""
        if not self.is_here:
            raise KoalaError(
                "the pipeline",
                expected="to be used in the process that opened it",
                found="a forked child of that process",
                fix="open a pipeline in the child itself, or start children with multiprocessing's method spawn",
            )


def refuse_copy() -> KoalaError:
    """Return the error of copying or pickling a pipeline."""
    return KoalaError(
        "the pipeline",
        expected="to be passed on as it is",
        found="a copy or a pickle of it, and its engines can be held but once",
        fix="share the pipeline between threads, or open another one from the bundle's path",
    )


def _leave_alone() -> None:
    """Keep what was open from being freed in this child, by Python and by the libraries' own exit handlers."""
    opened = [*_opened]
    for owned in opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owned))
    if opened:
        # The handler registered last runs first: it ends the child with its exit code, after Python has finished.
        with suppress(OSError, AttributeError):  # only glibc has on_exit
            libc = ctypes.CDLL(None)
            libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_leave_alone)
