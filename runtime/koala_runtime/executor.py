"""The engines of a bundle on a device, and the memory that they work in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from koala_bundle.errors import DeviceError
from koala_runtime.devices.base import Array, Device, Engine, Enqueue, Tensor
from koala_runtime.program import Call, Program


class _OnDevice(Protocol):
    device: Device


P = ParamSpec("P")
R = TypeVar("R")
Self_ = TypeVar("Self_", bound=_OnDevice)


def on_device(method: Callable[Concatenate[Self_, P], R]) -> Callable[Concatenate[Self_, P], R]:
    """Make the object's device the calling thread's while ``method`` runs."""

    @wraps(method)
    def wrapped(self: Self_, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.device.current():
            return method(self, *args, **kwargs)

    return cast("Callable[Concatenate[Self_, P], R]", wrapped)


class Executor:
    """The engines of one bundle on one device, with one memory for all pictures and one scratch memory for all engines.

    No two pictures, and no two engines, run at once. ``load`` loads the plan of a component, ``half`` is the dtype of
    float16 tensors on this device. With ``low_memory`` engines are loaded when their turn comes, again in each picture,
    and no graphs are kept. Raises DeviceError.

    ``block`` is the address on the device of the memory that a program describes. ``inputs`` on the host is what goes
    there, ``images`` and ``latents``, of which they were decoded, are what comes back: pinned, uint8.
    """

    def __init__(
        self, device: Device, load: Callable[[str], Engine], names: Sequence[str], half: str, low_memory: bool = False
    ) -> None:
        self.device, self.half, self.low_memory = device, half, low_memory
        self._load = load
        self._engines: dict[str, Engine] = {}
        self._parked: dict[str, Engine] = {}  # with low_memory those that came before, if they can wait without weights
        self._warm: set[str] = set()  # those that have run since they were loaded
        self._activations = 0
        self.block, self._block_bytes = 0, 0
        self._pinned: list[Array] = []
        if not low_memory:
            try:
                self.load_only(names)
            except BaseException:
                self.close()
                raise

    @on_device
    def load_only(self, names: Iterable[str]) -> None:
        """Load exactly these engines, and allocate scratch memory for the one that needs most."""
        wanted = dict.fromkeys(names)
        if wanted.keys() == self._engines.keys():
            return
        self.device.wait()
        self._release()
        for name in wanted:
            if name in self._parked:
                self._parked[name].unpark()
                self._engines[name] = self._parked.pop(name)
            else:
                self._engines[name] = self._load(name)
        if most := max((engine.activation_bytes for engine in self._engines.values()), default=0):
            self._activations = self.device.allocate(most)

    def has_room(self, program: Program) -> bool:
        """Whether ``program`` fits into the memory that is there."""
        return (
            program.nbytes <= self._block_bytes
            and program.input_bytes <= self.inputs.nbytes
            and program.images.nbytes <= self.images.nbytes
            and program.latents[-1].nbytes <= self.latents.nbytes
        )

    @on_device
    def make_room(self, program: Program) -> None:
        """Give up the memory, with what graphs refer to, for as much as ``program`` takes."""
        self._release_memory()
        try:
            self.block = self.device.allocate(program.nbytes)
            for nbytes in (program.input_bytes, program.images.nbytes, program.latents[-1].nbytes):
                self._pinned.append(self.device.pin(nbytes))
        except DeviceError:
            with suppress(DeviceError):  # the first error says more
                self._release_memory()
            raise
        self._block_bytes = program.nbytes

    @property
    def inputs(self) -> Array:
        """What the host fills."""
        return self._pinned[0]

    @property
    def images(self) -> Array:
        """What comes back."""
        return self._pinned[1]

    @property
    def latents(self) -> Array:
        """What comes back with the images."""
        return self._pinned[2]

    def bind(self, call: Call) -> Enqueue:
        """Return what enqueues ``call``."""
        tensors = {name: Tensor(self.block + at.offset, at.dtype, at.shape) for name, at in call.tensors.items()}
        run = self._engines[call.component].bind(tensors, self._activations)

        def enqueue() -> None:
            if not run():
                raise DeviceError(
                    f"component {call.component}",
                    expected="an engine that runs",
                    found="a refusal (the log of TensorRT says why)",
                    fix="build the engines again with `koala engines`",
                )

        return enqueue

    def unload(self) -> None:
        """Between pictures: with ``low_memory`` no engine stays loaded."""
        if self.low_memory:
            self.load_only(())

    def is_warm(self, calls: Iterable[Call]) -> bool:
        """Whether the engines of ``calls`` have run since they were loaded."""
        return {call.component for call in calls} <= self._warm

    def can_capture(self, calls: Iterable[Call]) -> bool:
        """Whether ``calls``, whose engines have run, can become a graph: they stay loaded, and allow it."""
        return not self.low_memory and all(self._engines[call.component].can_capture() for call in calls)

    def has_run(self, calls: Iterable[Call]) -> None:
        """Note that the engines of ``calls`` have run, and let them persist what they compiled."""
        for name in {call.component for call in calls}:
            self._warm.add(name)
            self._engines[name].save_kernel_cache()

    def _release_memory(self) -> None:
        self._block_bytes = 0
        while self._pinned:
            self.device.unpin(self._pinned.pop())
        if self.block:
            block, self.block = self.block, 0
            self.device.release(block)

    def _release(self) -> None:
        self._warm.clear()
        if self._activations:
            self.device.release(self._activations)
            self._activations = 0
        while self._engines:
            name, engine = self._engines.popitem()
            if self.low_memory and engine.park():
                self._parked[name] = engine
            else:
                engine.close()

    def close(self) -> None:
        """Free the engines and their memory. Never raises: on a device that failed there is nothing left to free."""
        try:
            with self.device.current():
                self._release_memory()
                self._release()
                while self._parked:
                    self._parked.popitem()[1].close()
        except DeviceError:
            self._engines.clear()
            self._parked.clear()
        self.device.close()
