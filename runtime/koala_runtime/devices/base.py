"""What the executor knows about hardware: a device with memory, one stream and graphs, and engines that run on it.

Work is enqueued on the device's stream and runs in order; the host learns of it only by waiting. The same code
therefore drives the processor, an NVIDIA GPU and a simulated one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Enqueue: TypeAlias = Callable[[], None]
"""Puts one piece of work on the device's stream."""
Graph: TypeAlias = Any


class Tensor(NamedTuple):
    """A tensor in a device's memory: its address there, its dtype as numpy names it, its shape."""

    address: int
    dtype: str
    shape: tuple[int, ...]


class Engine(Protocol):
    """A loaded plan."""

    @property
    def activation_bytes(self) -> int:
        """Scratch memory of one run, in bytes; its contents are undefined before and after."""

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return a function that enqueues one run with these tensors and the scratch memory at ``activations``.

        It returns False if the engine refused.
        """

    def can_capture(self) -> bool:
        """Whether a graph may hold runs of this plan, once one has been enqueued without a graph."""

    def save_kernel_cache(self) -> None:
        """Persist kernels that runs have compiled for this GPU, for the next load and the next process."""

    def park(self) -> bool:
        """Free the weights, but keep the rest for ``unpark``, when no run is enqueued; False if that cannot be."""

    def unpark(self) -> None:
        """Load the weights again."""

    def close(self) -> None:
        """Free everything."""


class Device(Protocol):
    """Memory, one stream, graphs. Every method raises DeviceError with the device's own reason."""

    @property
    def has_time_limit(self) -> bool:
        """Whether the system stops work on this device that takes seconds, so that a picture needs several graphs."""

    def current(self) -> AbstractContextManager[None]:
        """Make this device the calling thread's while the context lasts."""

    def free_bytes(self) -> int | None:
        """Free device memory, in bytes; None if not tracked."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of uninitialised device memory, a multiple of 256."""

    def release(self, address: int) -> None:
        """Free memory of ``allocate``."""

    def pin(self, nbytes: int) -> Array:
        """Return host memory that copies can use, uint8 zeros."""

    def unpin(self, array: Array) -> None:
        """Free memory of ``pin``."""

    def copy_in(self, address: int, array: Array) -> None:
        """Enqueue a copy from pinned memory to the device."""

    def copy_out(self, array: Array, address: int) -> None:
        """Enqueue a copy from the device to pinned memory."""

    def capture(self, work: Sequence[Enqueue]) -> Graph:
        """Return a graph that does what ``work`` enqueues, and run nothing.

        No engine in it may be at its first run, which no capture allows: TensorRT sets up its state then.
        """

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph."""

    def drop(self, graph: Graph) -> None:
        """Free a graph."""

    def time(self, work: Iterable[Enqueue]) -> list[float]:
        """Run each piece of ``work`` in turn, wait, and return the seconds each took by the device's clock."""

    def wait(self) -> None:
        """Wait until everything enqueued is done."""

    def wait_stream(self, stream: int) -> None:
        """Order work enqueued from now on after what the caller's CUDA stream holds so far."""

    def close(self) -> None:
        """Free everything that is left; never raises."""


class HostGraphs:
    """Graphs of a device that cannot capture: a graph is the list of its work, run again at each launch."""

    def capture(self, work: Sequence[Enqueue]) -> Graph:
        """Return the work."""
        return tuple(work)

    def launch(self, graph: Graph) -> None:
        """Enqueue the work again."""
        for enqueue in graph:
            enqueue()

    def drop(self, graph: Graph) -> None:
        """Nothing to free."""
