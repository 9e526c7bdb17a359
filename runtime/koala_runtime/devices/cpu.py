"""The ``cpu`` target: plans are ONNX Runtime models in float32, and the device is the processor."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from koala_bundle.errors import BundleError, DeviceError, first_line
from koala_bundle.tensors import ROW_ALIGNMENT
from koala_runtime.devices.base import Array, Enqueue, HostGraphs, Tensor

VERSION: str = ort.__version__
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


class CpuDevice(HostGraphs):
    """The processor: whatever is enqueued runs at once."""

    has_time_limit = False

    def __init__(self) -> None:
        self._memory: dict[int, Array] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nothing to do."""
        yield

    def free_bytes(self) -> int | None:
        """Not tracked."""
        return None

    def allocate(self, nbytes: int) -> int:
        """Return the address of uninitialised memory."""
        try:
            array = np.empty(nbytes + ROW_ALIGNMENT, np.uint8)
        except MemoryError:
            raise DeviceError(
                "memory", expected=f"{nbytes / 1e6:,.0f} MB", found="less", fix="draw fewer steps, or close programs"
            ) from None
        address = -(-array.ctypes.data // ROW_ALIGNMENT) * ROW_ALIGNMENT
        self._memory[address] = array
        return address

    def release(self, address: int) -> None:
        """Free memory."""
        del self._memory[address]

    def pin(self, nbytes: int) -> Array:
        """Return zeros."""
        return np.zeros(nbytes, np.uint8)

    def unpin(self, array: Array) -> None:
        """Nothing to do."""

    def copy_in(self, address: int, array: Array) -> None:
        """Copy."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, array: Array, address: int) -> None:
        """Copy."""
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def time(self, work: Iterable[Enqueue]) -> list[float]:
        """Run the work between readings of the host's clock."""
        marks = [time.perf_counter()]
        for enqueue in work:
            enqueue()
            marks.append(time.perf_counter())
        return [after - before for before, after in pairwise(marks)]

    def wait(self) -> None:
        """Nothing to do."""

    def wait_stream(self, stream: int) -> None:
        """Never called: requests with a stream were refused before."""

    def close(self) -> None:
        """Free what is left."""
        self._memory.clear()


class OrtEngine:
    """A plan as an ONNX Runtime session, which has scratch memory of its own.

    ``providers`` are ONNX Runtime's execution providers, ``memory`` is its name for the place of the tensors, and
    ``index`` which of the devices of that kind. ``wait`` waits for all work on a device that does it later.
    Raises BundleError for a file that ONNX Runtime does not load.
    """

    activation_bytes = 0

    def __init__(
        self,
        path: Path,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        memory: str = "cpu",
        index: int = 0,
        wait: Callable[[], None] | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # A session's threads spin while they wait for more work, and so take the cores from the next session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._memory, self._index, self._wait = memory, index, wait
        self._path = path
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=[*providers])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise self._misfit(f"a plan that ONNX Runtime {VERSION} loads", first_line(error)) from error

    @property
    def providers(self) -> list[str]:
        """Names of the execution providers that the session has, first those that are asked first."""
        return [*self._session.get_providers()]

    @property
    def outputs(self) -> list[str]:
        """Names of the output tensors."""
        return [tensor.name for tensor in self._session.get_outputs()]

    def _misfit(self, expected: str, found: str) -> BundleError:
        fix = "build the engines again with `koala engines BUNDLE --target cpu`"
        return BundleError(str(self._path), expected=expected, found=found, fix=fix)

    def _check_edges(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a plan that would read or write other sizes than the memory of ``tensors`` has."""
        for edge in (*self._session.get_inputs(), *self._session.get_outputs()):
            at = tensors.get(edge.name)
            if at is None or (_DTYPES.get(edge.type), tuple(edge.shape)) != (at.dtype, tuple(at.shape)):
                wanted = "no such tensor" if at is None else f"{edge.name} as {at.dtype} {[*at.shape]}"
                raise self._misfit(f"{wanted[:200]}, by the manifest", f"{edge.name} as {edge.type} {edge.shape}"[:200])

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return a function that runs the session on the memory of ``tensors``.

        Raises BundleError for a plan with other tensors, or when it fails.
        """
        self._check_edges(tensors)
        session, binding = self._session, self._session.io_binding()
        inputs = [tensor.name for tensor in session.get_inputs()]

        def bind(function: Callable[..., None], name: str) -> None:
            at = tensors[name]
            function(name, self._memory, self._index, np.dtype(at.dtype), at.shape, at.address)

        for name in inputs:
            bind(binding.bind_input, name)
        for name in self.outputs:
            bind(binding.bind_output, name)
        # What operations of the processor read, ONNX Runtime copies from a GPU when it is bound, not when it runs.
        places = zip(inputs, session.get_input_memory_infos(), strict=True) if self._wait else ()
        copied = [name for name, place in places if place.name == "Cpu"]

        def run() -> bool:
            if copied and self._wait:
                self._wait()
            for name in copied:
                bind(binding.bind_input, name)
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # ONNX Runtime's, as above
                raise self._misfit("a plan that runs", first_line(error)) from error
            return True

        return run

    def can_capture(self) -> bool:
        """Yes: graphs of the host run it again."""
        return True

    def save_kernel_cache(self) -> None:
        """Nothing to keep."""

    def park(self) -> bool:
        """No."""
        return False

    def unpark(self) -> None:
        """Never asked for."""

    def close(self) -> None:
        """Drop the session."""
        self._session = None
