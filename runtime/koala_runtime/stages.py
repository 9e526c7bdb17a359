"""What the loop knows about hardware: a device with memory, one stream and graphs, and plans that run on it.

Work is enqueued on the device's stream and runs in order; the host learns of it only by waiting. Nothing here says
where that is: on the processor, on an NVIDIA GPU, or on a simulated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Stage: TypeAlias = Callable[[], None]
Graph: TypeAlias = Any
Mark: TypeAlias = Any


class Tensor(NamedTuple):
    """A tensor in a device's memory: its address there, its dtype as numpy names it, its shape."""

    address: int
    dtype: str
    shape: tuple[int, ...]


class Plan(Protocol):
    """A compiled component, loaded."""

    @property
    def activation_bytes(self) -> int:
        """Scratch memory of one run; what it holds means nothing before and after."""

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        """Return what enqueues one run on the device's stream with these tensors, and the address of its scratch.

        It returns False if the run was refused.
        """

    def settle(self) -> None:
        """Keep what the first run brought forth (kernels compiled for this GPU), for the next process."""

    def close(self) -> None:
        """Free its weights."""


class Device(Protocol):
    """Memory, one stream, graphs. Every method raises DeviceError with the device's own reason."""

    def current(self) -> AbstractContextManager[None]:
        """Make this device the calling thread's, for as long as the context lasts."""

    def free_bytes(self) -> int | None:
        """Device memory that nobody uses, in bytes; None where nobody counts it."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of device memory, a multiple of 256; what it holds is not defined."""

    def release(self, address: int) -> None:
        """Give memory of ``allocate`` back."""

    def pin(self, nbytes: int) -> Array:
        """Return host memory that copies can use, uint8 zeros."""

    def unpin(self, array: Array) -> None:
        """Give memory of ``pin`` back."""

    def copy_in(self, address: int, array: Array) -> None:
        """Enqueue a copy from pinned memory to the device."""

    def copy_out(self, array: Array, address: int) -> None:
        """Enqueue a copy from the device to pinned memory."""

    def capture(self, stages: Sequence[Stage]) -> Graph:
        """Return one thing to launch that does what ``stages`` enqueue; they may run once before."""

    def launch(self, graph: Graph) -> None:
        """Enqueue a captured graph."""

    def drop(self, graph: Graph) -> None:
        """Free a graph."""

    def mark(self) -> Mark:
        """Enqueue a note of the time."""

    def seconds(self, marks: Sequence[Mark]) -> list[float]:
        """Return the time between each mark and the next, in seconds, and free them; all must have been reached."""

    def wait(self) -> None:
        """Wait until everything that was enqueued is done."""

    def after(self, stream: int) -> None:
        """Let what is enqueued from now on begin when the caller's CUDA stream has got to where it is."""

    def close(self) -> None:
        """Free everything that is left; never raises."""
