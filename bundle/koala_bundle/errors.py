"""The errors this project raises on purpose.

    KoalaError              exit code 1: valid input, but the work failed
    ├── BuildError          a converter or compiler refused a component
    ├── GateError           a converted component does not compute what PyTorch computes
    ├── DeviceError         the GPU refused or failed, or has too little memory
    ├── WithheldError       a function of the caller's withheld a picture
    └── InputError          exit code 2: the caller passed something wrong and can fix it
        ├── ArgumentError   an option or a call argument
        ├── CheckpointError a checkpoint folder, hub name or preset
        ├── BundleError     a bundle or one of its files
        └── TargetError     engines that are missing, stale, or made for another machine

Every error has the same four parts: what is wrong, what was expected, what was found, and how to fix it.
"""

from __future__ import annotations

from functools import partial
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or the error's kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` is one of a library: an Exception, or what PyO3 makes of a panic in Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class KoalaError(Exception):
    """Base of all errors raised on purpose. ``str()`` gives the whole sentence."""

    def __init__(self, what: str, *, expected: str, found: str, fix: str) -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        super().__init__(f"{what}: {self.reason}.")

    @property
    def reason(self) -> str:
        """The sentence without what it is about, for lists of things that cannot be done."""
        return f"expected {self.expected}, found {self.found}; {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its one argument, the sentence; another process needs the parts.
        parts = {"expected": self.expected, "found": self.found, "fix": self.fix}
        return partial(type(self), self.what, **parts), ()


class BuildError(KoalaError):
    """A converter or compiler refused a component."""


class GateError(KoalaError):
    """A converted component does not compute what PyTorch computes."""


class DeviceError(KoalaError):
    """The GPU refused or failed, or has too little memory."""


class WithheldError(KoalaError):
    """A picture is not handed over: raise it in ``on_image``."""


class InputError(KoalaError):
    """The caller passed something wrong and can fix it."""


class ArgumentError(InputError):
    """An option or call argument is wrong."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or is not of the SDXL shape."""


class BundleError(InputError):
    """A bundle, or a file in it, is missing, damaged or of another schema."""


class TargetError(InputError):
    """The engines for a target are missing, stale, or made for another machine."""
