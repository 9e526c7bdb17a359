"""What this machine can build, and which targets `koala engines` builds when none is named."""

from __future__ import annotations

from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA, RTX, TARGETS, TENSORRT, Target
from koala_engines.opening import open_compiler
from koala_engines.options import BuildOptions
from koala_machine.driver import query_driver
from koala_machine.support import installed_wheel, supports


def obstacles(device: int | str = 0) -> dict[Target, str | None]:
    """Return for each target why it cannot be built here for the GPU ``device``, in words; None if it can."""
    return {target: _obstacle(target, device) for target in TARGETS}


def default_targets(device: int | str = 0) -> list[Target]:
    """Return the targets worth building here: those for the GPU ``device`` if it is present, and always cpu."""
    gpu = query_driver(device=device).gpu
    targets = []
    if gpu is not None and _obstacle(TENSORRT, device) is None:
        targets.append(TENSORRT)
    if gpu is not None and supports(RTX, gpu) and _obstacle(RTX, device) is None:
        targets.append(RTX)
    if gpu is not None and installed_wheel(CUDA) and supports(CUDA, gpu):
        targets.append(CUDA)
    return [*targets, CPU]


def _obstacle(target: Target, device: int | str) -> str | None:
    try:
        open_compiler(target, BuildOptions(device=device))
    except TargetError as error:
        return error.reason
    return None
