"""What this machine can build, and which targets `koala engines` builds when none is named."""

from __future__ import annotations

from importlib.util import find_spec

from koala_engines.backend import RTX_CAPABILITIES, open_backend
from koala_bundle.errors import TargetError
from koala_machine.driver import query_driver


def obstacles() -> dict[str, str | None]:
    """Return for each target None if it can be built here, or in words what is in the way."""
    return {"tensorrt": _obstacle("tensorrt"), "rtx": _obstacle("rtx"), "cpu": _cpu_obstacle()}


def default_targets() -> list[str]:
    """The targets worth building here: for the GPU that is present, and always cpu."""
    gpu = query_driver().gpu
    targets = []
    if gpu is not None and _obstacle("tensorrt") is None:
        targets.append("tensorrt")
    if gpu is not None and gpu.compute_capability in RTX_CAPABILITIES and _obstacle("rtx") is None:
        targets.append("rtx")
    return [*targets, "cpu"]


def _obstacle(target: str) -> str | None:
    try:
        open_backend(target)
    except TargetError as error:
        return f"{error.found}; {error.fix}"
    return None


def _cpu_obstacle() -> str | None:
    missing = [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]
    return f"{' and '.join(missing)} not installed; `pip install koala-trt[export]`" if missing else None
