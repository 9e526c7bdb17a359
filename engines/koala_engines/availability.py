"""What this machine can build, and which targets `koala engines` builds when none is named."""

from __future__ import annotations

from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA, RTX, TARGETS, TENSORRT, Target
from koala_engines.opening import open_compiler
from koala_engines.options import BuildOptions
from koala_machine.driver import query_driver
from koala_machine.support import installed_wheel, supports


def obstacles() -> dict[Target, str | None]:
    """Return for each target why it cannot be built here, in words; None if it can."""
    return {target: _obstacle(target) for target in TARGETS}


def default_targets() -> list[Target]:
    """Return the targets worth building here: those for the GPU that is present, and always cpu."""
    gpu = query_driver().gpu
    targets = []
    if gpu is not None and _obstacle(TENSORRT) is None:
        targets.append(TENSORRT)
    if gpu is not None and supports(RTX, gpu) and _obstacle(RTX) is None:
        targets.append(RTX)
    if gpu is not None and installed_wheel(CUDA) and supports(CUDA, gpu):
        targets.append(CUDA)
    return [*targets, CPU]


def _obstacle(target: Target) -> str | None:
    try:
        open_compiler(target, BuildOptions())
    except TargetError as error:
        return f"{error.found}; {error.fix}"
    return None
