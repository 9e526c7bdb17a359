"""What differs between TensorRT and TensorRT-RTX; the builder knows neither by name.

Both offer nearly the same Python API. TensorRT tunes on the GPU present and has a timing cache; TensorRT-RTX
compiles ahead of time for compute capabilities that it is told, on any machine.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from koala_bundle.errors import ArgumentError, TargetError
from koala_machine.driver import GPU, query_driver
from koala_machine.tensorrt import open_tensorrt

# Compute capabilities of TensorRT-RTX 1.7 (its ComputeCapability enumeration; data-centre 9.0 and 10.0 are not in it).
RTX_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
TENSORRT_MAJOR = 11


@dataclass(frozen=True)
class Backend:
    """``trt`` is the imported module, ``gpu`` the device that plans are tied to (None: not tied)."""

    target: str
    trt: Any
    gpu: GPU | None

    @property
    def compiler(self) -> str:
        """Name of the compiler as engine.json spells it."""
        return str(self.trt.__name__)

    @property
    def version(self) -> str:
        """Version of the compiler: plans need it to match to the last number."""
        return str(self.trt.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Whether plans are for compute capabilities, and not for the GPU that is present."""
        return self.target == "rtx"


def open_backend(target: str) -> Backend:
    """Import the compiler of ``target``. Raises TargetError with what is missing on this machine."""
    trt: Any = open_tensorrt(target)
    if target == "rtx":
        return Backend(target, trt, None)
    major = int(str(trt.__version__).split(".")[0])
    if major != TENSORRT_MAJOR:
        raise TargetError(
            "target tensorrt",
            expected=f"TensorRT {TENSORRT_MAJOR}",
            found=str(trt.__version__),
            fix="install it with `pip install koala-trt[tensorrt]`",
        )
    driver = query_driver()
    if driver.gpu is None:
        raise TargetError(
            "target tensorrt",
            expected="the NVIDIA GPU that the plans are for",
            found=str(driver.problem),
            fix="build on the machine that will run them, or build `--target rtx`, which needs no GPU",
        )
    return Backend(target, trt, driver.gpu)


def check_capabilities(capabilities: tuple[str, ...]) -> None:
    """Raise ArgumentError for a compute capability that TensorRT-RTX has no kernels for."""
    for capability in capabilities:
        if capability not in RTX_CAPABILITIES:
            raise ArgumentError(
                "--compute-capability",
                expected=" or ".join(RTX_CAPABILITIES),
                found=capability,
                fix="pass one of these; for a data-centre GPU build `--target tensorrt` on it",
            )


def this_platform() -> str:
    """Operating system and processor, as in ``linux-x86_64``."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{'x86_64' if machine == 'amd64' else machine}"
