"""An NVIDIA GPU by way of the CUDA driver API. The only module that calls it; each call's status is checked here.

The driver API and not the CUDA runtime: it needs no second library, and it leaves the caller's context alone.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import numpy as np

from koala_bundle.errors import DeviceError, TargetError
from koala_machine.driver import query_driver
from koala_runtime.devices.base import Array, Enqueue, Graph

_SUCCESS, _OUT_OF_MEMORY, _CAPTURE_INVALIDATED = 0, 2, 901  # CUresult, from the driver API's cuda.h
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # CUevent_flags: whoever waits sleeps instead of keeping a core busy


def open_driver() -> Any:
    """Return the driver API's bindings, initialised.

    Raises TargetError if the bindings or the driver are missing, or the driver is older than the bindings.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise TargetError(
            "a GPU target",
            expected="the Python package cuda-bindings",
            found=f"none that can be imported ({error})",
            fix="install it with `pip install koala-trt[rtx]` or `koala-trt[tensorrt]`",
        ) from None
    needed = driver.CUDA_VERSION // 1000  # TensorRT's packages for this major version need the same
    try:
        status, version = driver.cuDriverGetVersion()
        old = int(status) == _SUCCESS and version < needed * 1000
        if int(status) == _SUCCESS and not old:
            (status,) = driver.cuInit(0)
            if int(status) == _SUCCESS:
                return driver
        found = f"CUDA {version // 1000}.{version % 1000 // 10}" if old else _reason(driver, status)
    except RuntimeError as error:  # of cuda-bindings, where the driver's library cannot be loaded
        old, found = False, f"none ({error})"
    raise TargetError(
        "the NVIDIA driver",
        expected=f"one for CUDA {needed}",
        found=found,
        fix=f"{'update the driver' if old else 'run `nvidia-smi`'}, or run on the processor (target cpu)",
    )


class CudaDevice:
    """A GPU and a stream of its own, in the primary context, which other libraries of the process use, too.

    ``device`` is the index of a visible GPU or its UUID. ``gpu`` describes it, ``stream`` is the stream's handle, and
    ``capturing`` says whether what is enqueued goes into a graph, ``has_time_limit`` whether the system stops kernels
    that run for long (Windows' watchdog; any system that draws its desktop with this GPU), ``has_pools`` whether memory
    can be allocated in the order of the stream. Raises TargetError if the GPU is not there, and DeviceError.
    """

    def __init__(self, device: int | str = 0) -> None:
        self._cuda: Any = open_driver()
        described = query_driver(device=device)
        if described.gpu is None:
            raise TargetError(
                f"device {device}",
                expected="an NVIDIA GPU",
                found=str(described.problem),
                fix="pass the index or UUID of a GPU that `nvidia-smi -L` lists",
            )
        # What must be freed: the function that does it, and the handle or address that it takes. Oldest first.
        self._owned: dict[tuple[str, int], None] = {}
        self.capturing, self.stream = False, 0
        self.gpu = described.gpu
        self._ordinal = self._do("cuDeviceGet", described.ordinal)
        limit = self._cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT
        self.has_time_limit = bool(self._do("cuDeviceGetAttribute", limit, self._ordinal))
        self._context: Any = self._do("cuDevicePrimaryCtxRetain", self._ordinal)
        try:
            with self.current():
                self._done = self._own("cuEventDestroy", self._do("cuEventCreate", _BLOCKING_SYNC | _DISABLE_TIMING))
                self.stream = self._own("cuStreamDestroy", self._do("cuStreamCreate", _NON_BLOCKING))
                self.has_pools = self._try_pools()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU the thread's, and afterwards the context that was current before."""
        self._do("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._do("cuCtxPopCurrent")

    def free_bytes(self) -> int | None:
        """Device memory that no process uses, in bytes."""
        free, _ = self._do("cuMemGetInfo")
        return int(free)

    def allocate(self, nbytes: int) -> int:
        """Return the address of device memory (aligned to 256 bytes at least, says the CUDA programming guide)."""
        status, address = self._cuda.cuMemAlloc(nbytes)
        if int(status) == _OUT_OF_MEMORY:
            raise DeviceError(
                "GPU memory",
                expected=f"{nbytes / 1e6:,.0f} MB in one piece",
                found=f"{(self.free_bytes() or 0) / 1e6:,.0f} MB free",
                fix="close what else runs on this GPU, or pass low_memory=True",
            )
        self._check("cuMemAlloc", status)
        return self._own("cuMemFree", address)

    def release(self, address: int) -> None:
        """Give memory back, when nothing enqueued uses it any more."""
        self._finish()
        self._free("cuMemFree", address)

    def pin(self, nbytes: int) -> Array:
        """Return page-locked host memory, zeros."""
        address = self._own("cuMemFreeHost", self._do("cuMemHostAlloc", nbytes, 0))
        array: Array = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))
        array[:] = 0
        return array

    def unpin(self, array: Array) -> None:
        """Give page-locked memory back, when nothing enqueued uses it any more."""
        self._finish()
        self._free("cuMemFreeHost", array.ctypes.data)

    def copy_in(self, address: int, array: Array) -> None:
        """Enqueue a copy to the GPU."""
        self._do("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self.stream)

    def copy_out(self, array: Array, address: int) -> None:
        """Enqueue a copy to the host."""
        self._do("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self.stream)

    def capture(self, work: Sequence[Enqueue]) -> Graph:
        """Capture the work as a CUDA graph, ready to launch."""
        with _no_collection():
            captured = self._record(work) or self._record(work, last=True)
        unfinished = [("cuGraphDestroy", captured)]
        try:
            graph = self._own("cuGraphExecDestroy", self._do("cuGraphInstantiate", captured, 0))
            unfinished.append(("cuGraphExecDestroy", graph))
            self._do("cuGraphUpload", graph, self.stream)
            self._free(*unfinished.pop(0))
        except DeviceError:
            for each in unfinished:
                with suppress(DeviceError):  # the first error says more
                    self._free(*each)
            raise
        return graph

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph."""
        self._do("cuGraphLaunch", graph, self.stream)

    def drop(self, graph: Graph) -> None:
        """Free a graph; one that still runs is freed when it is done, says the driver API."""
        self._free("cuGraphExecDestroy", graph)

    def time(self, work: Iterable[Enqueue]) -> list[float]:
        """Run the work between events, whose resolution is about half a microsecond."""
        events: list[int] = []
        try:
            self._stamp(events)
            for enqueue in work:
                enqueue()
                self._stamp(events)
            self.wait()
            return [float(self._do("cuEventElapsedTime", *pair)) / 1e3 for pair in pairwise(events)]
        finally:
            for event in events:
                with suppress(DeviceError):  # kept, and freed by close
                    self._free("cuEventDestroy", event)

    def wait(self) -> None:
        """Wait for the stream, asleep."""
        self._do("cuEventRecord", self._done, self.stream)
        self._do("cuEventSynchronize", self._done)

    def wait_stream(self, stream: int) -> None:
        """Let this stream wait for the caller's."""
        event = self._own("cuEventDestroy", self._do("cuEventCreate", 0))
        try:
            self._do("cuEventRecord", event, stream)
            self._do("cuStreamWaitEvent", self.stream, event, 0)
        finally:
            self._free("cuEventDestroy", event)

    def close(self) -> None:
        """Wait, and free what is left. After a fault the driver refuses even that, and frees it with the process."""
        if self._context is None:
            return
        with suppress(DeviceError), self.current():
            self._finish()
            for function, handle in reversed([*self._owned]):
                with suppress(DeviceError):
                    self._free(function, handle)
        self._context = None
        with suppress(DeviceError):
            self._do("cuDevicePrimaryCtxRelease", self._ordinal)

    def _try_pools(self) -> bool:
        """Try what the driver may refuse although it says that it has pools."""
        status, address = self._cuda.cuMemAllocAsync(1, self.stream)
        if int(status) == _SUCCESS:
            self._free("cuMemFree", self._own("cuMemFree", address))  # takes memory of pools, too
        return int(status) == _SUCCESS

    def _record(self, work: Sequence[Enqueue], *, last: bool = False) -> int | None:
        """Capture ``work`` and return the graph; None if a call invalidated it, unless this is the ``last`` try.

        Thread-local mode leaves other threads' CUDA calls alone.
        """
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._do("cuStreamBeginCapture", self.stream, mode)
        self.capturing = True
        failure: BaseException | None = None
        try:
            for enqueue in work:
                enqueue()
        except BaseException as error:
            failure = error
        self.capturing = False
        status, captured = self._cuda.cuStreamEndCapture(self.stream)  # in any case: the stream captures until then
        if int(status) == _SUCCESS:
            self._own("cuGraphDestroy", captured)
        if int(status) == _CAPTURE_INVALIDATED and not last and isinstance(failure, DeviceError | None):
            return None
        if failure is not None:
            if int(status) == _SUCCESS:
                with suppress(DeviceError):
                    self._free("cuGraphDestroy", captured)
            try:
                raise failure
            finally:
                del failure  # it refers to this frame, and the frame to what the work uses
        self._check("cuStreamEndCapture", status)
        return int(captured)

    def _stamp(self, events: list[int]) -> None:
        """Create an event, add it to ``events`` and record it."""
        events.append(self._own("cuEventDestroy", self._do("cuEventCreate", 0)))
        self._do("cuEventRecord", events[-1], self.stream)

    def _finish(self) -> None:
        """Wait for the stream; whatever went wrong there was reported, or will be."""
        with suppress(DeviceError):
            self._do("cuStreamSynchronize", self.stream)

    def _own(self, free: str, handle: Any) -> int:
        """Note that ``free`` frees ``handle``, and return it as an integer."""
        self._owned[free, int(handle)] = None
        return int(handle)

    def _free(self, free: str, handle: Any) -> None:
        """Free a handle; it stays noted if the driver refuses."""
        self._do(free, int(handle))
        del self._owned[free, int(handle)]

    def _do(self, function: str, *arguments: Any) -> Any:
        """Call the driver and return its results without the status. Raises DeviceError."""
        status, *results = getattr(self._cuda, function)(*arguments)
        self._check(function, status)
        return results[0] if len(results) == 1 else tuple(results)

    def _check(self, function: str, status: Any) -> None:
        if int(status) != _SUCCESS:
            raise DeviceError(
                f"the GPU, in {function}",
                expected="success",
                found=_reason(self._cuda, status),
                fix="open the pipeline again; if that fails, too, start the process again (`koala doctor` helps)",
            )


def _reason(driver: Any, status: Any) -> str:
    _, text = driver.cuGetErrorString(status)
    return f"{text.decode() if text else 'an unknown error'}, CUresult {int(status)}"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: a pipeline among it would free memory, which invalidates a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
