"""TensorRT's libraries, for builders and runtime alike: import and logging."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from koala_bundle.errors import TargetError
from koala_bundle.targets import Target
from koala_machine.support import install_command

_log = logging.getLogger(__name__)


def open_tensorrt(target: Target) -> Any:
    """Import the library of a TensorRT target. Raises TargetError if it is not installed."""
    try:
        return importlib.import_module(target.library)
    except (ImportError, OSError) as error:
        raise TargetError(
            f"target {target}",
            expected=f"the Python package {target.library}",
            found=f"none that can be imported ({error})",
            fix=f"install it with {install_command(target)}",
        ) from None


def make_logger(trt: Any) -> tuple[Any, list[str]]:
    """Return an ILogger that forwards to ``logging``, and the list to which it appends every error."""
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(message)
                _log.error("%s", message)
            elif severity == trt.ILogger.WARNING:
                _log.debug("%s", message)

    return Logger(), errors
