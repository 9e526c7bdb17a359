"""Memory for TensorRT's own use, from the device instead of from CUDA's pools."""

from __future__ import annotations

import logging
from typing import Any

from koala_bundle.errors import DeviceError
from koala_runtime.devices.cuda import CudaDevice

_log = logging.getLogger(__name__)


def make_allocator(trt: Any, device: CudaDevice) -> Any:
    """Return an ``IGpuAllocator`` for a runtime that is not to use memory pools; the caller keeps it alive.

    By default the libraries allocate from pools, which some drivers say they have and then refuse, under Windows above
    all. The bindings pass addresses as integers, and None for memory that there is not.
    """

    class Allocator(trt.IGpuAllocator):  # type: ignore[misc]  # trt is whichever library is there
        def __init__(self) -> None:
            trt.IGpuAllocator.__init__(self)

        def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int | None:
            try:
                with device.current():
                    return device.allocate(size) if size else None
            except DeviceError as error:  # the library reports that it has no memory
                _log.info("%s", error)
                return None

        def reallocate(self, address: int, alignment: int, new_size: int) -> None:
            return None  # not in place: the library copies

        def deallocate_async(self, memory: int, stream: int) -> bool:
            try:
                with device.current():
                    if memory:
                        device.release(memory)
                return True
            except DeviceError:
                return False

    return Allocator()
