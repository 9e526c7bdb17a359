"""What ``koala_runtime.devices.tensorrt`` uses of TensorRT-RTX, for the null driver.

A plan is an ONNX file of the ``cpu`` target. Its weights are memory of the device. Its kernels are one host function on
the stream, which lets ONNX Runtime compute on the device's memory, and destroys what a kernel may destroy: its scratch
memory, and its outputs before it reads its inputs. Its first run sets up state, which no capture allows.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
import types
import weakref
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

VERSION = "1.7.0.null"
STATE_BYTES = 4096  # pinned memory that a first run takes
DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}

driver: Any = None  # the null driver, set by install
problems: list[str] = []  # misuse of this library, for tests
loggers: set[Any] = set()
uncapturable: set[str] = set()  # components whose plans say so
_runs: dict[int, Any] = {}  # what was enqueued; a graph may run it again at any time
_numbers = itertools.count(1)


@cache
def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def activation_bytes(path: Path) -> int:
    """Scratch memory of a plan: as much as its outputs."""
    tensors = session(path).get_outputs()
    return sum(math.prod(each.shape) * np.dtype(DTYPES[each.type]).itemsize for each in tensors)


def weight_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _compute(number: int) -> None:
    try:
        _runs[number]()
    except BaseException as error:  # nobody above could catch it
        problems.append(repr(error))


def _memory(address: int, nbytes: int) -> Any:
    at = driver.null_reach(ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
    if not at:
        raise MemoryError(f"{nbytes} bytes at {address:#x}")
    return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(at))


class Settings:
    cuda_graph_strategy = "WHOLE_GRAPH_CAPTURE"
    strategy = "STATIC"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Cache:
    def deserialize(self, blob: bytes) -> bool:
        return bytes(blob) == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class IGpuAllocator:
    pass


class Runtime:
    """Memory for weights comes from the driver's pools, or from ``gpu_allocator``."""

    defer_weights_loading = False
    gpu_allocator: Any = None

    def __init__(self, logger: Any) -> None:
        loggers.add(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, plan: np.memmap[Any, Any]) -> Engine | None:
        engine = Engine(self._logger, Path(str(plan.filename)), self.gpu_allocator)
        return engine if self.defer_weights_loading or engine.load_weights(plan) else None


class Engine:
    def __init__(self, logger: Any, path: Path, allocator: Any) -> None:
        self.logger, self.path, self._allocator, self.weights = logger, path, allocator, 0
        self.device_memory_size_v2 = activation_bytes(path)

    def load_weights(self, plan: np.memmap[Any, Any]) -> bool:
        if self.weights or Path(str(plan.filename)) != self.path:
            problems.append("weights that are there, or another plan's")
        size, address = weight_bytes(self.path), ctypes.c_uint64()
        if self._allocator is not None:
            self.weights = self._allocator.allocate_async(size, 256, 0, 0) or 0
        elif status := driver.cuMemAllocAsync(ctypes.byref(address), ctypes.c_size_t(size), None):
            self.logger.log(ILogger.ERROR, _failure(status))
        else:
            self.weights = address.value
        return bool(self.weights)

    def unload_weights(self) -> bool:
        weights, self.weights = self.weights, 0
        if self._allocator is not None:
            return bool(self._allocator.deallocate_async(weights, 0))
        return not driver.cuMemFreeAsync(ctypes.c_uint64(weights), None)

    def create_runtime_config(self) -> Settings:
        return Settings()

    def create_execution_context(self, runtime_config: Settings) -> Context:
        if runtime_config.strategy != "USER_MANAGED" or runtime_config.cuda_graph_strategy != "DISABLED":
            problems.append("a context that allocates or captures by itself")
        return Context(self, runtime_config)

    def __del__(self) -> None:
        if self.weights:
            self.unload_weights()


class Context:
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, weakref.ref(settings)
        self._session = session(engine.path)
        self._inputs, self._outputs = self._session.get_inputs(), self._session.get_outputs()
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._state = ctypes.c_void_p()

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return any(name == each.name for each in (*self._inputs, *self._outputs))

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.path.stem not in uncapturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._settings() is None or self._scratch[1] < self._engine.device_memory_size_v2:
            problems.append("a run without its settings or scratch memory")
        status = 0
        if not self._state:
            status = driver.cuMemHostAlloc(ctypes.byref(self._state), ctypes.c_size_t(STATE_BYTES), 0)
        if not status:
            number = next(_numbers)
            _runs[number] = self._work()
            status = driver.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), _compute, ctypes.c_void_p(number))
        if status:
            self._engine.logger.log(ILogger.ERROR, _failure(status))
        return not status

    def _work(self) -> Any:
        addresses, scratch, engine = dict(self._addresses), self._scratch[0], self._engine
        weights, size, plan = engine.weights, engine.device_memory_size_v2, self._session

        def view(tensor: Any) -> Any:
            dtype = np.dtype(DTYPES[tensor.type])
            held = _memory(addresses[tensor.name], math.prod(tensor.shape) * dtype.itemsize)
            return held.view(dtype).reshape(tensor.shape)

        inputs, outputs = self._inputs, self._outputs

        def work() -> None:
            _memory(weights, 1)
            destroyed = [_memory(scratch, size), *(view(each).view(np.uint8) for each in outputs)]
            for each in destroyed:
                each[...] = 0xFF
            made = plan.run(None, {each.name: view(each) for each in inputs})
            for each, values in zip(outputs, made, strict=True):
                view(each)[...] = values
            destroyed[0][...] = 0xFF

        return work

    def __del__(self) -> None:
        if self._state:
            driver.cuMemFreeHost(self._state)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def _failure(status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return f"Error Code 1: Cuda Runtime ({(text.value or b'unknown error').decode()})"


def install(library: Any) -> None:
    """Take the place of ``tensorrt_rtx`` in this process."""
    global driver
    driver = library
    driver.null_reach.restype = ctypes.c_void_p
    module: Any = types.ModuleType("tensorrt_rtx")
    module.__spec__ = ModuleSpec("tensorrt_rtx", None)  # so that it counts as installed
    module.__version__, module.ILogger, module.Runtime = VERSION, ILogger, Runtime
    module.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="USER_MANAGED")
    module.IGpuAllocator = IGpuAllocator
    module.CudaGraphStrategy = types.SimpleNamespace(DISABLED="DISABLED")
    sys.modules["tensorrt_rtx"] = module
