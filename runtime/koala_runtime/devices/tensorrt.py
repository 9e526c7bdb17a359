"""Plans of TensorRT and TensorRT-RTX, loaded: the ``tensorrt`` and ``rtx`` targets. Their Python APIs are nearly one.

Each plan has one execution context, whose addresses are set before every run: a captured graph keeps those it was
captured with. Scratch memory comes from outside, so that all plans share one piece.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import BundleError, DeviceError
from koala_bundle.files import write_atomic
from koala_machine.tensorrt import make_logger
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.cuda import CudaDevice

_log = logging.getLogger(__name__)


class TensorRTEngine:
    """One deserialised plan with its context.

    ``kernel_cache`` is where TensorRT-RTX keeps the kernels that it compiles for this GPU in the first run. Only for a
    process with a driver: without one the libraries crash. Raises BundleError for a plan that is refused, and
    DeviceError if there is too little memory for it.
    """

    def __init__(self, trt: Any, path: Path, device: CudaDevice, kernel_cache: Path) -> None:
        self._device, self._kernel_cache = device, kernel_cache
        self._logger, complaints = make_logger(trt)
        runtime = trt.Runtime(self._logger)
        # Mapped, not read: the library copies the weights to the GPU, and 1.4 GB of host memory would be for nothing.
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(np.memmap(path, np.uint8, "r"))
        if engine is None:
            raise _refused(path, complaints)
        self._engine: trt.ICudaEngine = engine
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache: trt.IRuntimeCache | None = None
        if hasattr(settings, "create_runtime_cache"):
            # The whole picture is one graph here; the library's own capture would be a graph in a graph.
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self._cache = settings.create_runtime_cache()
            self._fresh = not (kernel_cache.is_file() and self._cache.deserialize(kernel_cache.read_bytes()))
            if self._fresh:
                _log.info("%s: compiling kernels for this GPU; they are kept in %s", path.stem, kernel_cache)
            settings.set_runtime_cache(self._cache)
        context: trt.IExecutionContext | None = self._engine.create_execution_context(runtime_config=settings)
        if context is None:
            raise _refused(path, complaints)
        self._context: trt.IExecutionContext = context

    @property
    def activation_bytes(self) -> int:
        """Scratch memory of one run."""
        return int(self._engine.device_memory_size_v2)

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return what enqueues one run."""
        size = self.activation_bytes

        def enqueue() -> bool:
            self._context.set_device_memory(activations, size)
            for name, at in tensors.items():
                if not self._context.set_tensor_address(name, at.address):
                    return False
            return bool(self._context.execute_async_v3(self._device.stream))

        return enqueue

    def save_kernel_cache(self) -> None:
        """Write the compiled kernels next to the plan; where that is not allowed they are compiled in each process."""
        if self._cache is None or not self._fresh:
            return
        self._fresh = False
        try:
            write_atomic(self._kernel_cache, bytes(self._cache.serialize()))
        except OSError as error:
            _log.warning("the kernels compiled for this GPU cannot be kept: %s", error)

    def close(self) -> None:
        """Free the context, then the engine with its weights."""
        del self._context, self._engine
        self._cache = None


def _refused(path: Path, complaints: list[str]) -> BundleError | DeviceError:
    reason = complaints[0].strip().rstrip(".") if complaints else "a refusal without a reason"
    if "memory" in reason.lower():
        return DeviceError(
            f"GPU memory for {path.stem}",
            expected=f"{path.stat().st_size / 1e6:,.0f} MB",
            found=reason,
            fix="close what else runs on this GPU, or pass low_memory=True",
        )
    return BundleError(
        str(path), expected="a plan for this GPU", found=reason, fix="build the engines again with `koala engines`"
    )
