"""A GPU in software: the executor, its programs and their capture run on it as on a GPU, with real numbers.

Its memory is a byte arena, poisoned where nothing was written. Enqueued work runs only when the host waits, and a graph
holds operations with the addresses that they were captured with. Engines compute by ONNX Runtime on the arena. Every
operation is checked (is its memory still allocated?) and logged, so that tests see what a picture costs, and any
operation can be made to fail.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from koala_bundle.errors import DeviceError
from koala_bundle.tensors import ITEM_BYTES, ROW_ALIGNMENT
from koala_runtime.devices.base import Array, Enqueue, Graph, Tensor
from koala_runtime.devices.cpu import OrtEngine

POISON = 0xFF  # as float32 or float16: NaN
ARENA_BYTES = 256 << 20


@dataclass(frozen=True)
class _Operation:
    """What the stream runs: ``ranges`` are the (address, bytes) on the device that it touches."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    run: Callable[[], None]


@dataclass
class _Graph:
    operations: list[_Operation] = field(default_factory=list)
    dropped: bool = False


class SimulatedDevice:
    """See the module.

    ``log`` lists what happened, in order. ``failures`` maps the name of a log entry to the error (in words) with which
    its next occurrence fails; one called ``sticky`` fails everything from then on, as a GPU does after a fault.
    ``uncapturable`` names the components whose plans say that they cannot be captured.
    """

    def __init__(self, arena_bytes: int = ARENA_BYTES) -> None:
        self._arena = np.full(arena_bytes + ROW_ALIGNMENT, POISON, np.uint8)
        self._base = -(-self._arena.ctypes.data // ROW_ALIGNMENT) * ROW_ALIGNMENT
        self._size = arena_bytes
        self.live: dict[int, int] = {}
        self.pinned: dict[int, Array] = {}
        self.graphs = 0
        self.log: list[str] = []
        self.failures: dict[str, str] = {}
        self.has_time_limit = False
        self.uncapturable: set[str] = set()
        self._queue: list[_Operation] = []
        self._recording: _Graph | None = None

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued goes into a graph."""
        return self._recording is not None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nothing to do."""
        yield

    def free_bytes(self) -> int | None:
        """What is left of the arena."""
        return self._size - sum(self.live.values())

    def allocate(self, nbytes: int) -> int:
        """Return the first gap that is large enough, poisoned."""
        self.note("allocate")
        end = self._base
        for address, size in sorted(self.live.items()):
            if address - end >= nbytes:
                break
            end = -(-(address + size) // ROW_ALIGNMENT) * ROW_ALIGNMENT
        if end + nbytes > self._base + self._size:
            raise DeviceError(
                "memory of the simulated device",
                expected=f"{nbytes:,} bytes in one piece",
                found=f"{self.free_bytes():,} free in all",
                fix="close other pipelines, or pass low_memory=True",
            )
        self.live[end] = nbytes
        return end

    def release(self, address: int) -> None:
        """Give memory back; it is poisoned."""
        self.note("release")
        self.poison(address, self.live.pop(address))

    def pin(self, nbytes: int) -> Array:
        """Return zeros."""
        self.note("pin")
        array = np.zeros(nbytes, np.uint8)
        self.pinned[array.ctypes.data] = array
        return array

    def unpin(self, array: Array) -> None:
        """Forget the array."""
        del self.pinned[array.ctypes.data]

    def copy_in(self, address: int, array: Array) -> None:
        """Enqueue a copy; it reads the array when it runs."""
        self._enqueue_copy("copy in", address, address, array.ctypes.data, array.nbytes)

    def copy_out(self, array: Array, address: int) -> None:
        """Enqueue a copy."""
        self._enqueue_copy("copy out", address, array.ctypes.data, address, array.nbytes)

    def capture(self, work: Sequence[Enqueue]) -> Graph:
        """Record the work."""
        self.note("capture")
        self._recording = graph = _Graph()
        try:
            for enqueue in work:
                enqueue()
        finally:
            self._recording = None
        self.graphs += 1
        return graph

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph."""
        self.note("launch")
        assert not graph.dropped, "a graph was launched after it was dropped"
        self._queue += graph.operations

    def drop(self, graph: Graph) -> None:
        """Free a graph."""
        graph.dropped = True
        self.graphs -= 1

    def time(self, work: Iterable[Enqueue]) -> list[float]:
        """Run the work between notes of the host's time."""
        marks: list[float] = []
        mark = _Operation("mark", (), lambda: marks.append(time.perf_counter()))
        self.enqueue(mark)
        for enqueue in work:
            enqueue()
            self.enqueue(mark)
        self.wait()
        return [after - before for before, after in pairwise(marks)]

    def wait(self) -> None:
        """Run what was enqueued."""
        queue, self._queue = self._queue, []
        self.note("wait")
        for operation in queue:
            for address, nbytes in operation.ranges:
                assert any(
                    start <= address and address + nbytes <= start + size for start, size in self.live.items()
                ), f"{operation.name} touches {nbytes} bytes at {address - self._base}, which are not allocated"
            operation.run()

    def wait_stream(self, stream: int) -> None:
        """Note the request."""
        self.note(f"after stream {stream}")

    def close(self) -> None:
        """Forget everything that is left."""
        self._queue.clear()

    def enqueue(self, operation: _Operation) -> None:
        """Add to the stream, or to the graph that is being recorded."""
        if self._recording is not None:
            self._recording.operations.append(operation)
            return
        self.note(operation.name)
        self._queue.append(operation)

    def _enqueue_copy(self, name: str, address: int, to: int, source: int, nbytes: int) -> None:
        def run() -> None:
            ctypes.memmove(to, source, nbytes)

        self.enqueue(_Operation(name, ((address, nbytes),), run))

    def note(self, name: str) -> None:
        """Write to the log; fail if that was asked for."""
        self.log.append(name)
        if reason := self.failures.get("sticky") or self.failures.pop(name, None):
            raise DeviceError(
                f"simulated device, {name}", expected="success", found=reason, fix="open the pipeline again"
            )

    def poison(self, address: int, nbytes: int) -> None:
        """Overwrite memory with what no program may read."""
        ctypes.memset(address, POISON, nbytes)


class SimulatedEngine:
    """A plan of the ``cpu`` target that behaves like one for a GPU.

    Its first run cannot be captured, as TensorRT's, which set up their state then; each run destroys its scratch, and
    what its outputs held.
    """

    def __init__(self, device: SimulatedDevice, name: str, path: Path, weights: int, scratch: int) -> None:
        self._device, self._name, self.activation_bytes = device, name, scratch
        device.note(f"load {name}")
        self._plan = OrtEngine(path)
        self._weights = device.allocate(weights)  # never read: ONNX Runtime has its own
        self._ready = self._closed = False

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return what enqueues a run; refused while capturing if it is the first."""
        run = self._plan.bind(tensors, 0)
        ranges = {name: (at.address, math.prod(at.shape) * ITEM_BYTES[at.dtype]) for name, at in tensors.items()}
        scratch = (activations, self.activation_bytes)
        written = [scratch, *(ranges[name] for name in self._plan.outputs)]

        def operation() -> None:
            assert not self._closed, f"{self._name} ran after its plan was closed"
            # A kernel may write any part of its outputs before it has read all of its inputs.
            for each in written:
                self._device.poison(*each)
            run()
            self._device.poison(*scratch)

        def enqueue() -> bool:
            if self._device.failures.pop(f"refuse {self._name}", None) or (self._device.capturing and not self._ready):
                return False
            self._ready = True
            self._device.enqueue(_Operation(self._name, (scratch, *ranges.values()), operation))
            return True

        return enqueue

    def can_capture(self) -> bool:
        """Yes, unless a test says otherwise."""
        return self._name not in self._device.uncapturable

    def save_kernel_cache(self) -> None:
        """Nothing to keep."""

    def park(self) -> bool:
        """No."""
        return False

    def unpark(self) -> None:
        """Never asked for."""

    def close(self) -> None:
        """Drop the session."""
        self._closed = True
        self._plan.close()
        self._device.release(self._weights)
