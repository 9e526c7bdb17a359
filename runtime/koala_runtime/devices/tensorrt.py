"""Plans of TensorRT and TensorRT-RTX, loaded: the ``tensorrt`` and ``rtx`` targets. Their Python APIs are nearly one.

Each plan has one execution context. The addresses of its tensors are set before every run: a captured graph keeps those
it was captured with. Scratch memory comes from outside, so that all plans share one piece.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import BundleError, DeviceError
from koala_bundle.files import write_atomic
from koala_machine.tensorrt import make_logger
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.cuda import CudaDevice
from koala_runtime.devices.tensorrt_memory import make_allocator

_log = logging.getLogger(__name__)
_SEAL_BYTES = hashlib.sha256().digest_size


class KernelCache:
    """Kernels that TensorRT-RTX compiled for this GPU: kept over loads of a plan and, where possible, in a file.

    The file begins with the SHA-256 of what follows; one that is damaged is as good as none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.is_file() else b""
        seal, data = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
        self.data = data if hashlib.sha256(data).digest() == seal else b""

    def save(self, data: bytes) -> None:
        """Keep ``data``; writes the file if it differs."""
        if data == self.data:
            return
        self.data = data
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            _log.warning("the kernels compiled for this GPU cannot be kept: %s", error)


class TensorRTEngine:
    """One deserialised plan with its context.

    ``kernels`` are those that TensorRT-RTX compiled in earlier runs. With ``parks``, where the library can, ``park``
    keeps the context. Only for a process with a driver: without one the libraries crash. Raises BundleError for a plan
    that is refused, DeviceError if there is too little memory for it.
    """

    def __init__(self, trt: Any, path: Path, device: CudaDevice, kernels: KernelCache, *, parks: bool = False) -> None:
        self._device, self._path, self._kernels = device, path, kernels
        logger, self._errors = make_logger(trt)
        runtime: trt.Runtime = trt.Runtime(logger)
        if not device.has_pools:
            self._allocator = runtime.gpu_allocator = make_allocator(trt, device)
        self._parks = False
        if parks and hasattr(runtime, "defer_weights_loading"):
            self._parks = runtime.defer_weights_loading = True
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(self._plan())
        if engine is None:
            raise self._refused()
        self._engine: trt.ICudaEngine = engine
        del engine  # an error's traceback would keep it
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache: trt.IRuntimeCache | None = None
        if hasattr(settings, "create_runtime_cache"):
            # The whole picture is one graph here; the library's own capture would be a graph in a graph.
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self._cache = settings.create_runtime_cache()
            if not (kernels.data and self._cache.deserialize(kernels.data)):
                _log.info("%s: compiling kernels for this GPU; they are kept in %s", path.stem, kernels.path)
            settings.set_runtime_cache(self._cache)
        context: trt.IExecutionContext | None = self._engine.create_execution_context(runtime_config=settings)
        if context is None:
            del self._engine
            raise self._refused()
        self._context: trt.IExecutionContext = context
        self._settings, self._activations = settings, 0  # the context refers to its settings
        if self._parks:
            self.unpark()

    @property
    def activation_bytes(self) -> int:
        """Scratch memory of one run."""
        return int(self._engine.device_memory_size_v2)

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return what enqueues one run; it raises DeviceError if the GPU failed."""
        if activations != self._activations:  # here, and not in each run: a capture need not allow it
            self._context.set_device_memory(activations, self.activation_bytes)
            self._activations = activations

        def enqueue() -> bool:
            self._errors.clear()
            addressed = all(self._context.set_tensor_address(name, at.address) for name, at in tensors.items())
            if addressed and self._context.execute_async_v3(self._device.stream):
                return True
            if fault := self._gpu_fault():
                raise fault
            return False

        return enqueue

    def can_capture(self) -> bool:
        """Ask the library, which may find that a plan allocates or synchronises while it runs."""
        if hasattr(self._context, "is_stream_capturable"):
            return bool(self._context.is_stream_capturable(self._device.stream))
        return True

    def save_kernel_cache(self) -> None:
        """Keep the kernels compiled so far, next to the plan; where that is not allowed, for this process."""
        if self._cache is not None:
            self._kernels.save(bytes(self._cache.serialize()))

    def park(self) -> bool:
        """Free the weights; the context stays with its kernels."""
        if self._parks and hasattr(self._engine, "unload_weights"):
            return bool(self._engine.unload_weights())
        return False

    def unpark(self) -> None:
        """Load the weights. Raises as loading the plan does."""
        self._errors.clear()
        if hasattr(self._engine, "load_weights") and not self._engine.load_weights(self._plan()):
            raise self._refused()

    def close(self) -> None:
        """Free the context, then the engine with its weights."""
        del self._context, self._settings, self._engine
        self._cache = None

    def _plan(self) -> Any:
        """Map the file: the library copies it to the GPU, and 1.4 GB of host memory would be for nothing."""
        return np.memmap(self._path, np.uint8, "r")

    def _refused(self) -> BundleError | DeviceError:
        """Return the reason why the plan could not be loaded."""
        if fault := self._gpu_fault():
            return fault
        return BundleError(
            str(self._path),
            expected="a plan for this GPU",
            found=_sentence(self._errors[0]) if self._errors else "a refusal without a reason",
            fix="build the engines again with `koala engines`",
        )

    def _gpu_fault(self) -> DeviceError | None:
        """Return the error if TensorRT reported a failure of the GPU. Raises the device's own error first."""
        if not self._device.capturing:
            self._device.wait()
        for message in self._errors:
            if re.search("out ?of ?memory|enough free memory", message, re.IGNORECASE):
                return DeviceError(
                    f"GPU memory for {self._path.stem}",
                    expected=f"{self._path.stat().st_size / 1e6:,.0f} MB",
                    found=_sentence(message),
                    fix="close what else runs on this GPU, or pass low_memory=True",
                )
            if re.search("cuda ?runtime|cuda ?error|cuda ?driver", message, re.IGNORECASE):
                return DeviceError(
                    f"the GPU, in {self._path.stem}",
                    expected="success",
                    found=_sentence(message),
                    fix="open the pipeline again; if that fails, too, start the process again (`koala doctor` helps)",
                )
        return None


def _sentence(message: str) -> str:
    return message.strip().rstrip(".")
