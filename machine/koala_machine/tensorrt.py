"""TensorRT's libraries, for builders and runtime alike: import and logging."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from importlib.util import find_spec
from typing import Any
from weakref import WeakValueDictionary

from koala_bundle.errors import TargetError
from koala_bundle.targets import Target
from koala_machine.support import install_command

_log = logging.getLogger(__name__)


class Errors(list[str]):
    """What TensorRT reported as errors since this list was made or cleared, oldest first."""


_listening: WeakValueDictionary[int, Errors] = WeakValueDictionary()


def open_tensorrt(target: Target) -> Any:
    """Import the library of a TensorRT target. Raises TargetError if it is not installed."""
    try:
        return importlib.import_module(target.library)
    except (ImportError, OSError) as error:
        raise TargetError(
            f"target {target}",
            expected=f"the Python package {target.library}",
            found=f"none that can be imported ({error})" if find_spec(target.library) else "none",
            fix=f"install it with {install_command(target)}",
        ) from None


def make_logger(trt: Any) -> tuple[Any, Errors]:
    """Return the process's ILogger, which forwards to ``logging``, and a list to which it appends every error from now.

    TensorRT keeps the first logger that it is given for the whole process, so each library gets one that is never
    freed. Errors of objects that work at the same time come to both of their lists.
    """
    errors = Errors()
    _listening[id(errors)] = errors
    return _logger(trt), errors


@cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                for errors in [*_listening.values()]:
                    errors.append(message)
                _log.error("%s", message)
            elif severity == trt.ILogger.WARNING:
                _log.debug("%s", message)

    return Logger()
