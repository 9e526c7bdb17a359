"""Runs programs: puts their memory on a device, binds plans to it, captures what they enqueue, launches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from koala_runtime.contract.errors import DeviceError
from koala_runtime.loop import LATENTS, Call, Program, Slice
from koala_runtime.stages import Array, Device, Graph, Plan, Stage, Tensor

COPY_IN, COPY_OUT = "copy in", "copy out"


class Executor:
    """The plans of one bundle on one device, with one activation memory for all of them: they never run at once.

    ``half`` is the dtype of float16 tensors there. With ``low_memory`` plans are loaded when their turn comes, in each
    picture anew, and no graphs are kept. Raises DeviceError.
    """

    def __init__(
        self, device: Device, load: Callable[[str], Plan], names: Sequence[str], half: str, low_memory: bool = False
    ) -> None:
        self.device, self.half, self.low_memory = device, half, low_memory
        self._load = load
        self._plans: dict[str, Plan] = {}
        self._activations = 0
        if not low_memory:
            with device.current():
                try:
                    self.have(names)
                except BaseException:
                    self.close()
                    raise

    def have(self, names: Iterable[str]) -> None:
        """Have exactly these plans loaded, and activation memory for the one that needs most."""
        wanted = dict.fromkeys(names)
        if wanted.keys() == self._plans.keys():
            return
        self.device.wait()
        self._unload()
        for name in wanted:
            self._plans[name] = self._load(name)
        if most := max((plan.activation_bytes for plan in self._plans.values()), default=0):
            self._activations = self.device.allocate(most)

    def stage(self, call: Call, block: int) -> Stage:
        """Return what enqueues ``call`` on memory whose block begins at ``block``."""
        tensors = {name: Tensor(block + at.offset, at.dtype, at.shape) for name, at in call.tensors.items()}
        enqueue = self._plans[call.component].bind(tensors, self._activations)

        def stage() -> None:
            if not enqueue():
                raise DeviceError(
                    f"stage {call.component}",
                    expected="a run that the plan accepts",
                    found="a refusal (the log of TensorRT says why)",
                    mend="build the engines again with `koala engines`",
                )

        return stage

    def rest(self) -> None:
        """Between pictures: with ``low_memory`` no plan stays loaded."""
        if self.low_memory:
            self.have(())

    def settle(self) -> None:
        """Let the plans keep what their first runs brought forth."""
        for plan in self._plans.values():
            plan.settle()

    def _unload(self) -> None:
        if self._activations:
            self.device.release(self._activations)
            self._activations = 0
        while self._plans:
            self._plans.popitem()[1].close()

    def close(self) -> None:
        """Free the plans and their memory. Never raises: on a device that failed there is nothing left to free."""
        try:
            with self.device.current():
                self._unload()
        except DeviceError:
            self._plans.clear()
        self.device.close()


class Run:
    """A program with its memory: one block on the device, and on the host what goes there and comes back."""

    def __init__(self, executor: Executor, program: Program) -> None:
        self.program = program
        self._executor, self._device = executor, executor.device
        self._graphs: dict[str, Graph] = {}
        self._pinned: list[Array] = []
        self.block = self._device.allocate(program.nbytes)
        try:
            self._pinned += [self._device.pin(program.input_bytes)]
            self._pinned += [self._device.pin(program.images.nbytes)]
        except BaseException:
            self.close()
            raise
        self._inputs, images = self._pinned
        self.images: Array = images.view(program.images.dtype).reshape(program.images.shape)

    def fill(self, name: str, values: Array) -> None:
        """Set an input: all of it, or of a table the first items of the first rows, [rows, items]."""
        place = self.program.inputs[name]
        held = _view(self._inputs, place)
        if values.dtype != held.dtype:
            raise ValueError(f"{name} is {held.dtype}, not {values.dtype}")
        if values.shape != held.shape:
            held = held[: values.shape[0], : values.shape[1]]
        held[...] = values

    def draw(self) -> None:
        """Run everything and wait: one launch, where graphs are kept."""
        program = self.program
        if self._executor.low_memory:
            self.encode()
            for index in range(len(program.steps)):
                self.step(index)
            self.decode()
            self._executor.rest()
        else:
            self._enqueue("picture", program.calls, first=True, last=True)
            self._device.wait()

    def encode(self) -> None:
        """Enqueue all that comes before the first step."""
        self._enqueue("encode", self.program.encode, first=True)

    def step(self, index: int) -> None:
        """Enqueue one denoising step."""
        self._enqueue(f"step {index}", self.program.steps[index : index + 1])

    def decode(self, after: int | None = None) -> None:
        """Enqueue the decoding of the finished latents, or of those after step ``after``, and wait for the images."""
        call = self.program.decode if after is None else self.program.decode_after(after)
        self._enqueue(f"decode {call.tensors[LATENTS].offset}", (call,), last=True)
        self._device.wait()

    def compute(self, call: Call) -> None:
        """Run one call by itself and wait."""
        if self._executor.low_memory:
            self._executor.have([call.component])
        self._executor.stage(call, self.block)()
        self._device.wait()

    def timed(self) -> list[tuple[str, float]]:
        """Run everything in parts and return what each took by the device's clock, in seconds."""
        parts: list[tuple[str, str, Sequence[Call], bool, bool]] = [
            (COPY_IN, COPY_IN, (), True, False),
            *((call.component, f"call {i}", (call,), False, False) for i, call in enumerate(self.program.calls)),
            (COPY_OUT, COPY_OUT, (), False, True),
        ]
        if not self._executor.low_memory:
            for _, key, calls, first, last in parts:  # captured before: that is not the picture's time
                self._graph(key, calls, first, last)
        marks = [self._device.mark()]
        for _, key, calls, first, last in parts:
            self._enqueue(key, calls, first=first, last=last)
            marks.append(self._device.mark())
        self._device.wait()
        return [(part[0], seconds) for part, seconds in zip(parts, self._device.seconds(marks), strict=True)]

    def read(self, place: Slice) -> Array:
        """Return a copy of a tensor as it is after everything enqueued."""
        pinned = self._device.pin(place.nbytes)
        try:
            self._device.copy_out(pinned, self.block + place.offset)
            self._device.wait()
            return pinned.view(place.dtype).reshape(place.shape).copy()
        finally:
            self._device.unpin(pinned)

    def write(self, place: Slice, values: Array) -> None:
        """Set a tensor after everything enqueued."""
        pinned = self._device.pin(place.nbytes)
        try:
            pinned.view(place.dtype).reshape(place.shape)[...] = values
            self._device.copy_in(self.block + place.offset, pinned)
            self._device.wait()
        finally:
            self._device.unpin(pinned)

    def close(self) -> None:
        """Free the graphs and the memory."""
        while self._graphs:
            self._device.drop(self._graphs.popitem()[1])
        while self._pinned:
            self._device.unpin(self._pinned.pop())
        if self.block:
            self._device.release(self.block)
            self.block = 0

    def _enqueue(self, key: str, calls: Sequence[Call], *, first: bool = False, last: bool = False) -> None:
        """Enqueue calls, after the copy of the inputs if they are the ``first``, before that of the images if last.

        ``key`` tells them apart: they are captured once.
        """
        if not self._executor.low_memory:
            self._device.launch(self._graph(key, calls, first, last))
            return
        for stage in self._stages(calls, first, last):
            stage()

    def _graph(self, key: str, calls: Sequence[Call], first: bool, last: bool) -> Graph:
        if key not in self._graphs:
            self._graphs[key] = self._device.capture(self._stages(calls, first, last))
            self._executor.settle()
        return self._graphs[key]

    def _stages(self, calls: Sequence[Call], first: bool, last: bool) -> list[Stage]:
        stages: list[Stage] = []
        if self._executor.low_memory and calls:
            self._executor.have(call.component for call in calls)
        if first:
            stages.append(lambda: self._device.copy_in(self.block, self._inputs))
        stages += [self._executor.stage(call, self.block) for call in calls]
        if last:
            images = self._pinned[1]
            stages.append(lambda: self._device.copy_out(images, self.block + self.program.images.offset))
        return stages


def _view(memory: Array, place: Slice) -> Array:
    return memory[place.offset : place.end].view(np.dtype(place.dtype)).reshape(place.shape)
