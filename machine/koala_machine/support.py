"""Which wheel runs a target, with which NVIDIA driver, on which GPUs: one table, for messages, `koala doctor` and docs.

Sources: NVIDIA's CUDA compatibility guide (drivers), the ComputeCapability enumeration of TensorRT-RTX 1.7, the
support matrices of TensorRT 11 and CUDA 13 (Turing is the oldest), the requirements of onnxruntime-gpu.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires

from koala_bundle.engine_record import GPU
from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA, RTX, SIMULATED, TARGETS, TENSORRT, Target
from koala_machine.driver import Driver, query_driver

TURING = "7.5"
RTX_PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities of one set of rtx plans; Turing's plans are a set of their own, since they slow down the others.

There is no 9.0 and no 10.0: TensorRT-RTX does not run on data-centre GPUs newer than Ampere.
"""
CAPABILITIES: dict[Target, tuple[str, ...]] = {
    TENSORRT: ("7.5+",),
    RTX: (TURING, *RTX_PORTABLE),
    CUDA: ("7.5+",),
}
"""Compute capabilities that a target runs on; a plus means "and all newer ones". Of targets that need a GPU only."""


@dataclass(frozen=True)
class Wheel:
    """One row of the support matrix: an extra of koala-trt and what it takes.

    ``package`` is the distribution that carries the target's library. ``cuda`` is the CUDA major version that it was
    built for, and ``driver`` the CUDA version that the NVIDIA driver has to support, with the driver ``branch`` that
    first does; None for wheels that need no driver. ``systems`` as in ``platform.system()``.
    """

    target: Target
    extra: str
    package: str
    cuda: int | None
    driver: tuple[int, int] | None
    branch: str | None
    systems: tuple[str, ...]


_BOTH = ("Linux", "Windows")
WHEELS = (
    Wheel(TENSORRT, "tensorrt", "tensorrt-cu13", 13, (13, 0), "r580", _BOTH),
    Wheel(TENSORRT, "tensorrt-cu12", "tensorrt-cu12", 12, (12, 2), "r535", _BOTH),
    Wheel(RTX, "rtx", "tensorrt-rtx-cu13", 13, (13, 0), "r580", _BOTH),
    Wheel(RTX, "rtx-cu12", "tensorrt-rtx-cu12", 12, (12, 2), "r535", _BOTH),
    Wheel(CUDA, "cuda", "onnxruntime-gpu", 13, (13, 0), "r580", _BOTH),
    Wheel(CPU, "cpu", "onnxruntime", None, None, None, ("Linux", "Windows", "Darwin")),
)
"""Best first for each target."""


def wheels(target: Target) -> list[Wheel]:
    """Return the wheels that run ``target``, best first."""
    return [wheel for wheel in WHEELS if wheel.target == (CPU if target == SIMULATED else target)]


def suitable_wheel(target: Target, driver: Driver | None = None) -> Wheel | None:
    """Return the best wheel for the driver of this machine; None if the driver is too old for every one.

    Without a driver it is the best of all: a machine that only builds needs none.
    """
    version = _version(driver or query_driver())
    return next(
        (wheel for wheel in wheels(target) if version is None or wheel.driver is None or wheel.driver <= version), None
    )


def recommended_wheel(driver: Driver) -> Wheel:
    """Return the wheel of the best target that runs on the GPU of ``driver``, or on the processor."""
    for target in TARGETS:
        wheel = suitable_wheel(target, driver)
        here = not target.needs_gpu or (driver.gpu is not None and supports(target, driver.gpu))
        if here and wheel is not None and platform.system() in wheel.systems:
            return wheel
    return wheels(CPU)[-1]


def requirement(wheel: Wheel) -> str:
    """Return the package of a wheel and the versions that koala-trt takes, as in "tensorrt-cu13 >=11,<12"."""
    try:
        lines = requires("koala-trt") or []
    except PackageNotFoundError:
        lines = []
    pattern = re.compile(rf"{wheel.package}(?:\[.*\])?([<>=~!][^;]*);.*extra == ['\"]{wheel.extra}['\"]")
    found = next((match[1] for line in lines if (match := pattern.match(line))), "")
    return f"{wheel.package} {','.join(sorted(found.strip().split(','), reverse=True))}".strip()


def install_command(target: Target, driver: Driver | None = None) -> str:
    """Return the command that installs what ``target`` needs with the driver of this machine, in backquotes."""
    wheel = suitable_wheel(target, driver) or wheels(target)[-1]
    return f"`pip install koala-trt[{wheel.extra}]`"


def installed_wheel(target: Target) -> Wheel | None:
    """Return which of the wheels of ``target`` is installed; None if none is, or by other means than these."""
    for wheel in wheels(target):
        try:
            distribution(wheel.package)
        except PackageNotFoundError:
            continue
        return wheel
    return None


def installed_version(wheel: Wheel) -> str:
    """Return the version of a wheel that is installed."""
    return distribution(wheel.package).version


def supports(target: Target, gpu: GPU) -> bool:
    """Return whether ``target`` runs on ``gpu``."""
    found = _number(gpu.compute_capability)
    return any(
        found >= _number(each[:-1]) if each.endswith("+") else each == gpu.compute_capability
        for each in CAPABILITIES[target]
    )


def check_driver(target: Target, driver: Driver) -> None:
    """Raise TargetError if the driver is too old for the installed wheel of ``target``, and name the right one.

    If none is installed, the driver may be too old for every one.

    NVIDIA's libraries only say that CUDA does not start, or that an object cannot be made.
    """
    other, version = suitable_wheel(target, driver), _version(driver)
    wheel = installed_wheel(target) or (None if other else wheels(target)[-1])
    if wheel is None or wheel.driver is None or version is None or wheel.driver <= version:
        return
    update = f"update the NVIDIA driver to {wheel.branch} or newer"
    raise TargetError(
        f"target {target}",
        expected=f"an NVIDIA driver for CUDA {wheel.driver[0]}, which {wheel.package} needs",
        found=f"one for CUDA {driver.cuda_version}",
        fix=f"{update}, or install `koala-trt[{other.extra}]` in a new environment" if other else update,
    )


def check_gpu(target: Target, gpu: GPU) -> None:
    """Raise TargetError if ``target`` does not run on ``gpu``."""
    if supports(target, gpu):
        return
    others = [each for each in CAPABILITIES if each != target and supports(each, gpu)]
    instead = "".join(f"build and run target {each} on this machine, or " for each in others[:1])
    raise TargetError(
        f"target {target}",
        expected=f"a GPU of compute capability {_list(CAPABILITIES[target])}",
        found=str(gpu),
        fix=f"{instead}run target {CPU}",
    )


def _list(capabilities: tuple[str, ...]) -> str:
    return " or ".join(f"{each[:-1]} or newer" if each.endswith("+") else each for each in capabilities)


def _version(driver: Driver) -> tuple[int, int] | None:
    return _number(driver.cuda_version) if driver.cuda_version else None


def _number(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
