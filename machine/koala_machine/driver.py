"""Which NVIDIA GPU is here, asked of the driver's own library through ctypes.

No CUDA package is needed for the answer, so that `koala doctor` can give it on a bare install. Nothing is
allocated on the device; the only state touched is the driver's own initialisation.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from koala_bundle.engine_record import GPU

# CUdevice_attribute values, from the CUDA driver API's cuda.h.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Driver:
    """What the driver answered: ``cuda_version`` as in "13.0" and the first visible GPU, or why there is neither."""

    cuda_version: str | None
    gpu: GPU | None
    memory_bytes: int
    problem: str | None


def query_driver(library: str | None = None) -> Driver:
    """Ask the CUDA driver for the first visible GPU. Never raises; ``problem`` says in words what is missing."""
    name = library or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    version = ctypes.c_int()
    try:
        cuda = ctypes.CDLL(name)
        status = cuda.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return Driver(None, None, 0, f"no NVIDIA driver ({name} cannot be loaded)")
    if status != 0:
        return Driver(None, None, 0, f"the NVIDIA driver does not answer (CUresult {status})")
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = cuda.cuInit(0)
    count, device = ctypes.c_int(), ctypes.c_int()
    if status == 0:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return Driver(cuda_version, None, 0, f"the NVIDIA driver shows no GPU (CUresult {status})")
    title = ctypes.create_string_buffer(256)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(title, len(title), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    gpu = GPU(title.value.decode(errors="replace"), f"{major.value}.{minor.value}")
    return Driver(cuda_version, gpu, memory.value, None)
