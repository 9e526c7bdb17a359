"""Finding TensorRT: builders and runtime import the same library for a target."""

from __future__ import annotations

import importlib
from typing import Any

from koala_runtime.contract.errors import TargetError

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


def open_tensorrt(target: str) -> Any:
    """Import the library of ``target``. Raises TargetError if it is not installed."""
    name = _MODULES[target]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise TargetError(
            f"target {target}",
            expected=f"the Python package {name}",
            found=f"none that can be imported ({error})",
            mend=f"install it with `pip install koala-trt[{target}]`",
        ) from None
