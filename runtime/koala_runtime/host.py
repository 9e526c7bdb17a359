"""The ``cpu`` target: plans are ONNX Runtime models in float32, a device is the processor, its memory is the host's."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from koala_runtime.contract.errors import BundleError
from koala_runtime.contract.io import ROW_ALIGNMENT
from koala_runtime.stages import Array, Graph, Mark, Stage, Tensor

VERSION: str = ort.__version__


class HostDevice:
    """The processor: whatever is enqueued runs at once, and a graph is the list of its stages."""

    def __init__(self) -> None:
        self._memory: dict[int, Array] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nothing to do."""
        yield

    def free_bytes(self) -> int | None:
        """Nobody counts it."""
        return None

    def allocate(self, nbytes: int) -> int:
        """Return the address of memory."""
        array = np.empty(nbytes + ROW_ALIGNMENT, np.uint8)
        address = -(-array.ctypes.data // ROW_ALIGNMENT) * ROW_ALIGNMENT
        self._memory[address] = array
        return address

    def release(self, address: int) -> None:
        """Give it back."""
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

    def capture(self, stages: Sequence[Stage]) -> Graph:
        """Return the stages."""
        return tuple(stages)

    def launch(self, graph: Graph) -> None:
        """Run the stages."""
        for stage in graph:
            stage()

    def drop(self, graph: Graph) -> None:
        """Nothing to do."""

    def mark(self) -> Mark:
        """Return the time."""
        return time.perf_counter()

    def seconds(self, marks: Sequence[Mark]) -> list[float]:
        """Return the differences."""
        return [after - before for before, after in pairwise(marks)]

    def wait(self) -> None:
        """Nothing to do."""

    def after(self, stream: int) -> None:
        """There are no streams here, and requests for one were refused before."""

    def close(self) -> None:
        """Free what is left."""
        self._memory.clear()


class OrtPlan:
    """A component as an ONNX Runtime session. Its scratch is its own.

    ``providers`` are ONNX Runtime's execution providers, and ``memory`` is its name for where tensors lie.
    """

    activation_bytes = 0

    def __init__(self, path: Path, providers: Sequence[Any] = ("CPUExecutionProvider",), memory: str = "cpu") -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # A session's threads spin in wait of more work, also when the next session wants the cores: off between runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._memory = memory
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=[*providers])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BundleError(
                str(path),
                expected=f"a plan that ONNX Runtime {VERSION} loads",
                found=str(error).splitlines()[0],
                mend="build the engines again with `koala engines BUNDLE --target cpu`",
            ) from error

    @property
    def outputs(self) -> list[str]:
        """Names of what a run writes."""
        return [tensor.name for tensor in self._session.get_outputs()]

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return what runs the session on the memory of ``tensors``."""
        session, binding = self._session, self._session.io_binding()
        for tensors_of, bind in (
            (session.get_inputs(), binding.bind_input),
            (session.get_outputs(), binding.bind_output),
        ):
            for name in (tensor.name for tensor in tensors_of):
                at = tensors[name]
                bind(name, self._memory, 0, np.dtype(at.dtype), at.shape, at.address)

        def run() -> bool:
            session.run_with_iobinding(binding)
            return True

        return run

    def settle(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Drop the session."""
        self._session = None
