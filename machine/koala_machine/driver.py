"""Which NVIDIA GPU is here, asked of the driver's own library through ctypes.

No CUDA package is needed for the answer, so that `koala doctor` can give it on a bare install. Nothing is
allocated on the device; the only state touched is the driver's own initialisation.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from koala_bundle.engine_record import GPU
from koala_bundle.errors import TargetError

# CUdevice_attribute values, from the CUDA driver API's cuda.h.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Driver:
    """What the driver answered: ``cuda_version`` as in "13.0" and the GPU that was asked for, or why it is not there.

    ``ordinal`` is the GPU's index among the visible ones.
    """

    cuda_version: str | None
    gpu: GPU | None
    memory_bytes: int
    problem: str | None
    ordinal: int = 0


class _DriverError(Exception):
    """The driver's answer in words."""


def query_driver(library: str | None = None, *, device: int | str = 0) -> Driver:
    """Ask the CUDA driver for a visible GPU by its index or UUID ("GPU-..." or "MIG-...", as `nvidia-smi -L` shows).

    An index may be text, as the command line and the environment have it. Never raises; ``problem`` says in words what
    is missing.
    """
    name = library or _LIBRARY
    version = ctypes.c_int()
    try:
        cuda = ctypes.CDLL(name)
        status = cuda.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return Driver(None, None, 0, f"no NVIDIA driver ({name} cannot be loaded)")
    if status != 0:
        return Driver(None, None, 0, f"the NVIDIA driver does not answer (CUresult {status})")
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    try:
        gpu, memory_bytes, ordinal = _describe(cuda, device)
    except _DriverError as error:
        return Driver(cuda_version, None, 0, str(error))
    return Driver(cuda_version, gpu, memory_bytes, None, ordinal)


def find_gpu(device: int | str) -> Driver:
    """Return what the driver says of the GPU ``device``. Raises TargetError if it is not there."""
    driver = query_driver(device=device)
    if driver.gpu is None:
        raise TargetError(
            f"device {device}",
            expected="an NVIDIA GPU",
            found=str(driver.problem),
            fix="pass the index or UUID of a GPU that `nvidia-smi -L` lists",
        )
    return driver


def query_uuid(library: str | None = None, *, device: int | str = 0) -> str | None:
    """Return the UUID of a visible GPU as `nvidia-smi -L` shows it; None if it is not there or the driver is too old.

    That of an instance of a divided GPU begins with "MIG-"; CUDA names such an instance "... MIG 1g.5gb".
    """
    driver = query_driver(library, device=device)
    if driver.gpu is None:
        return None
    try:
        found = _uuid(ctypes.CDLL(library or _LIBRARY), driver.ordinal)
    except (OSError, AttributeError, _DriverError):
        return None
    return f"{'MIG' if ' MIG ' in driver.gpu.name else 'GPU'}-{found}"


@contextmanager
def current_gpu(device: int | str | None) -> Iterator[None]:
    """Make a GPU the one that libraries use in this thread, as TensorRT's builder does; None leaves what is current.

    Its primary context becomes current, from which CUDA's runtime library takes the GPU (CUDA driver API, "Interactions
    with the CUDA Runtime"). Raises TargetError if the GPU is not there or its context does not start.
    """
    if device is None:
        yield
        return
    ordinal = find_gpu(device).ordinal
    cuda, handle, context = ctypes.CDLL(_LIBRARY), ctypes.c_int(), ctypes.c_void_p()
    status = cuda.cuDeviceGet(ctypes.byref(handle), ordinal)
    status = status or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)
    if not status:
        status = cuda.cuCtxPushCurrent_v2(context)
        if status:
            cuda.cuDevicePrimaryCtxRelease_v2(handle)
    if status:
        raise TargetError(
            f"device {device}", expected="a GPU that starts", found=f"CUresult {status}", fix="run `nvidia-smi`"
        )
    try:
        yield
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


def used_bytes(device: int | str) -> int | None:
    """Return the memory of a GPU that is in use, by all processes and a context for the question; None if unknown."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        with current_gpu(device):
            status = ctypes.CDLL(_LIBRARY).cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    except (OSError, TargetError):
        return None
    return None if status else total.value - free.value


def _describe(cuda: Any, device: int | str) -> tuple[GPU, int, int]:
    """Return a GPU, its memory in bytes and its index. Raises _DriverError."""
    count, handle = ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        raise _DriverError(f"the NVIDIA driver shows no GPU (CUresult {status})")
    index = isinstance(device, int) or device.isdecimal()
    ordinal = int(device) if index else _find(cuda, str(device), count.value)
    if not 0 <= ordinal < count.value:
        raise _DriverError(f"{count.value} in all, numbered from 0")

    def ask(function: str, *arguments: Any) -> None:
        if status := getattr(cuda, function)(*arguments):
            raise _DriverError(f"the NVIDIA driver does not describe GPU {ordinal} ({function}: CUresult {status})")

    title = ctypes.create_string_buffer(256)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    ask("cuDeviceGet", ctypes.byref(handle), ordinal)
    ask("cuDeviceGetName", title, len(title), handle)
    ask("cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle)
    ask("cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle)
    ask("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    gpu = GPU(title.value.decode(errors="replace"), f"{major.value}.{minor.value}")
    return gpu, memory.value, ordinal


def _find(cuda: Any, wanted: str, count: int) -> int:
    """Return the index of the GPU with this UUID, or the only one whose UUID begins so. Raises _DriverError."""
    seen = [_uuid(cuda, ordinal) for ordinal in range(count)]
    begins = wanted.lower().removeprefix("gpu-").removeprefix("mig-")
    found = [ordinal for ordinal, each in enumerate(seen) if begins and each.startswith(begins)]
    if len(found) != 1:
        raise _DriverError(f"{len(found) or 'none'} of that UUID among {', '.join(f'GPU-{each}' for each in seen)}")
    return found[0]


def _uuid(cuda: Any, ordinal: int) -> str:
    """Return the UUID of a GPU, or of the MIG instance that is visible in its place. Raises _DriverError."""
    handle, held = ctypes.c_int(), ctypes.create_string_buffer(16)
    # The first version of cuDeviceGetUuid gives the UUID of the GPU that a MIG instance is a part of.
    if status := cuda.cuDeviceGet(ctypes.byref(handle), ordinal) or cuda.cuDeviceGetUuid_v2(held, handle):
        raise _DriverError(f"the NVIDIA driver does not give the UUID of GPU {ordinal} (CUresult {status})")
    return str(uuid.UUID(bytes=held.raw))
