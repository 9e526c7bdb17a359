"""An NVIDIA GPU by way of the CUDA runtime. The only module that touches CUDA; each call's status is checked here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import numpy as np

from koala_bundle.errors import DeviceError, TargetError
from koala_runtime.devices.base import Array, Enqueue, Event, Graph

INDEX = 0  # the first visible GPU; CUDA_VISIBLE_DEVICES chooses another
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NON_BLOCKING = 1  # cudaStreamNonBlocking: does not wait for the legacy default stream


def cuda_runtime() -> Any:
    """Return the CUDA runtime's bindings. Raises TargetError if they are missing, or the driver is older than they."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise TargetError(
            "a GPU target",
            expected="the Python package cuda-bindings",
            found=f"none that can be imported ({error})",
            fix="install it with `pip install koala-trt[rtx]` or `koala-trt[tensorrt]`",
        ) from None
    # The bindings carry the runtime library itself, so this answers without a driver, too.
    status, _ = runtime.cudaGetDeviceCount()
    if int(status) != 0:
        _, wanted = runtime.cudaRuntimeGetVersion()
        _, driver = runtime.cudaDriverGetVersion()
        version = f"CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "none"
        raise TargetError(
            "the NVIDIA driver",
            expected=f"one for CUDA {wanted // 1000}",
            found=f"{version} ({_reason(runtime, status)})",
            fix="update the driver, or run on the processor (target cpu)",
        )
    return runtime


class CudaDevice:
    """The first visible GPU and a stream of its own on it, in the context that other libraries use there, too."""

    def __init__(self) -> None:
        self._cuda: Any = cuda_runtime()
        self._memory: dict[int, int] = {}
        self._pinned: dict[int, Array] = {}
        with self.current():
            self.stream = int(self._do("cudaStreamCreateWithFlags", _NON_BLOCKING))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU the thread's, and the one that was its own before afterwards."""
        before = self._do("cudaGetDevice")
        self._do("cudaSetDevice", INDEX)
        try:
            yield
        finally:
            if before != INDEX:
                self._do("cudaSetDevice", before)

    def free_bytes(self) -> int | None:
        """Device memory that no process uses, in bytes."""
        free, _ = self._do("cudaMemGetInfo")
        return int(free)

    def allocate(self, nbytes: int) -> int:
        """Return the address of device memory (aligned to 256 bytes at least, says the CUDA programming guide)."""
        status, address = self._cuda.cudaMalloc(nbytes)
        if int(status) == _OUT_OF_MEMORY:
            raise DeviceError(
                "GPU memory",
                expected=f"{nbytes / 1e6:,.0f} MB in one piece",
                found=f"{(self.free_bytes() or 0) / 1e6:,.0f} MB free",
                fix="close what else runs on this GPU, or pass low_memory=True",
            )
        self._check("cudaMalloc", status)
        self._memory[int(address)] = nbytes
        return int(address)

    def release(self, address: int) -> None:
        """Give memory back."""
        del self._memory[address]
        self._do("cudaFree", address)

    def pin(self, nbytes: int) -> Array:
        """Return page-locked host memory, zeros."""
        address = int(self._do("cudaMallocHost", nbytes))
        array: Array = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))
        array[:] = 0
        self._pinned[address] = array
        return array

    def unpin(self, array: Array) -> None:
        """Give page-locked memory back."""
        address = array.ctypes.data
        del self._pinned[address]
        self._do("cudaFreeHost", address)

    def copy_in(self, address: int, array: Array) -> None:
        """Enqueue a copy to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def copy_out(self, array: Array, address: int) -> None:
        """Enqueue a copy to the host."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def capture(self, stages: Sequence[Enqueue]) -> Graph:
        """Run the stages once, then capture them as a CUDA graph, ready to launch.

        The run before is TensorRT's demand: plans set up their state in their first one, which cannot be captured.
        Thread-local mode leaves other threads' CUDA calls alone.
        """
        for stage in stages:
            stage()
        self.wait()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", self.stream, mode)
        try:
            for stage in stages:
                stage()
        except BaseException:
            with suppress(DeviceError):  # a capture that went wrong has no graph
                self._do("cudaGraphDestroy", self._do("cudaStreamEndCapture", self.stream))
            raise
        captured = self._do("cudaStreamEndCapture", self.stream)
        try:
            graph = self._do("cudaGraphInstantiate", captured, 0)
        finally:
            self._do("cudaGraphDestroy", captured)
        self._do("cudaGraphUpload", graph, self.stream)
        return graph

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph."""
        self._do("cudaGraphLaunch", graph, self.stream)

    def drop(self, graph: Graph) -> None:
        """Free a graph."""
        self._do("cudaGraphExecDestroy", graph)

    def record_event(self) -> Event:
        """Record an event."""
        event = self._do("cudaEventCreate")
        self._do("cudaEventRecord", event, self.stream)
        return event

    def elapsed(self, marks: Sequence[Event]) -> list[float]:
        """Return the time between events (about half a microsecond's resolution), and destroy them."""
        pairs = pairwise(marks)
        times = [float(self._do("cudaEventElapsedTime", before, after)) / 1e3 for before, after in pairs]
        for mark in marks:
            self._do("cudaEventDestroy", mark)
        return times

    def wait(self) -> None:
        """Wait for the stream."""
        self._do("cudaStreamSynchronize", self.stream)

    def wait_stream(self, stream: int) -> None:
        """Let this stream wait for the caller's."""
        event = self._do("cudaEventCreate")
        self._do("cudaEventRecord", event, stream)
        self._do("cudaStreamWaitEvent", self.stream, event, 0)
        self._do("cudaEventDestroy", event)

    def close(self) -> None:
        """Free what is left. After a fault the driver refuses even that, and frees it with the process."""
        with suppress(DeviceError), self.current():
            for address in [*self._memory]:
                with suppress(DeviceError):
                    self.release(address)
            for array in [*self._pinned.values()]:
                with suppress(DeviceError):
                    self.unpin(array)
            if self.stream:
                stream, self.stream = self.stream, 0
                self._do("cudaStreamDestroy", stream)

    def _do(self, function: str, *arguments: Any) -> Any:
        """Call the CUDA runtime and return its results without the status. Raises DeviceError."""
        status, *results = getattr(self._cuda, function)(*arguments)
        self._check(function, status)
        return results[0] if len(results) == 1 else tuple(results)

    def _check(self, function: str, status: Any) -> None:
        if int(status) != 0:
            raise DeviceError(
                f"the GPU, in {function}",
                expected="success",
                found=_reason(self._cuda, status),
                fix="open the pipeline again; if that fails, too, start the process again (`koala doctor` helps)",
            )


def _reason(cuda: Any, status: Any) -> str:
    _, text = cuda.cudaGetErrorString(status)
    return f"{text.decode()}, CUDA error {int(status)}"
