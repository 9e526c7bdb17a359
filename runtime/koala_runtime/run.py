"""Runs programs: binds the engines' calls to memory, captures what they enqueue, launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from koala_runtime.devices.base import Array, Enqueue, Graph
from koala_runtime.executor import Executor, on_device
from koala_runtime.program import DENOISER, LATENTS, PREVIEW_DECODER, Call, Placement, Program

COPY_IN, COPY_OUT = "copy in", "copy out"


class Run:
    """A program in the executor's memory, with its graphs.

    What is enqueued for the second time is captured as a graph and kept: the first time may be an engine's first run,
    which no capture allows, and a graph that is launched once does not pay. Runs of one executor share its memory; a
    run that needs more voids the others, which must be closed before it is made.
    """

    def __init__(self, executor: Executor, program: Program) -> None:
        self.program, self.device = program, executor.device
        self._executor = executor
        self._graphs: dict[str, Graph] = {}
        self._seen: set[str] = set()
        if not executor.has_room(program):
            executor.make_room(program)

    @property
    def images(self) -> Array:
        """The pictures on the host once they are decoded, until the next are: uint8 [batch, height, width, 3]."""
        place = self.program.images
        return self._executor.images[: place.nbytes].view(place.dtype).reshape(place.shape)

    @property
    def final_latents(self) -> Array:
        """Whatever the pictures were decoded from, until the next are: it shows whether they can be right."""
        place = self.program.latents[-1]
        return self._executor.latents[: place.nbytes].view(place.dtype).reshape(place.shape)

    @property
    def images_address(self) -> int:
        """Where on the device the pictures are."""
        return self._executor.block + self.program.images.offset

    def fill(self, inputs: Mapping[str, Array]) -> None:
        """Set inputs by name: whole tensors, or of a table the first items of the first rows, [rows, items]."""
        for name, values in inputs.items():
            place = self.program.inputs[name]
            held = self._executor.inputs[place.offset : place.end].view(np.dtype(place.dtype)).reshape(place.shape)
            if values.dtype != held.dtype:
                raise ValueError(f"{name} is {held.dtype}, not {values.dtype}")
            if values.shape != held.shape:
                held = held[: values.shape[0], : values.shape[1]]
            held[...] = values

    @on_device
    def draw(self) -> None:
        """Run everything and wait: one launch, where graphs are kept and the device has no time limit."""
        if self._executor.low_memory or self.device.has_time_limit:
            self.encode()
            for index in range(len(self.program.steps)):
                self.step(index)
            self.decode()
            self._executor.unload()
        else:
            self._enqueue("picture", self.program.calls, first=True, last=True)
            self.device.wait()

    @on_device
    def encode(self) -> None:
        """Enqueue all that comes before the first step."""
        self._enqueue("encode", self.program.encode, first=True)

    @on_device
    def step(self, index: int) -> None:
        """Enqueue one denoising step."""
        self._enqueue(f"step {index}", self.program.steps[index : index + 1])

    @on_device
    def decode(self, after: int | None = None) -> None:
        """Enqueue the decoding of the finished latents, or a preview of those after step ``after``, and wait for it."""
        call = self.program.decode if after is None else self.program.decode_after(after)
        self._enqueue(f"{call.component} {call.tensors[LATENTS].offset}", (call,), last=True)
        self.device.wait()

    @on_device
    def compute(self, call: Call) -> None:
        """Run one call by itself and wait."""
        if self._executor.low_memory:
            self._executor.load_only([call.component])
        self._executor.bind(call)()
        self.device.wait()

    @on_device
    def timed(self) -> list[tuple[str, float]]:
        """Run everything in parts and return what each took by the device's clock, in seconds."""
        parts: list[tuple[str, str, Sequence[Call], bool, bool]] = [
            (COPY_IN, COPY_IN, (), True, False),
            *((call.component, f"call {i}", (call,), False, False) for i, call in enumerate(self.program.calls)),
            (COPY_OUT, COPY_OUT, (), False, True),
        ]
        if not self._executor.low_memory:  # first runs and captures are not the picture's time
            if not self._executor.is_warm(self.program.calls):
                self._run_now(self.program.calls, first=True, last=False)
            for _, key, calls, first, last in parts:
                self._graph(key, calls, first, last)
        times = self.device.time(
            partial(self._enqueue, key, calls, first=first, last=last) for _, key, calls, first, last in parts
        )
        return [(part[0], seconds) for part, seconds in zip(parts, times, strict=True)]

    @on_device
    def read(self, place: Placement) -> Array:
        """Return a copy of a tensor as it is after everything enqueued."""
        pinned = self.device.pin(place.nbytes)
        try:
            self.device.copy_out(pinned, self._executor.block + place.offset)
            self.device.wait()
            return pinned.view(place.dtype).reshape(place.shape).copy()
        finally:
            self.device.unpin(pinned)

    @on_device
    def write(self, place: Placement, values: Array) -> None:
        """Set a tensor after everything enqueued."""
        pinned = self.device.pin(place.nbytes)
        try:
            pinned.view(place.dtype).reshape(place.shape)[...] = values
            self.device.copy_in(self._executor.block + place.offset, pinned)
            self.device.wait()
        finally:
            self.device.unpin(pinned)

    @on_device
    def close(self) -> None:
        """Free the graphs."""
        while self._graphs:
            self.device.drop(self._graphs.popitem()[1])

    def _enqueue(self, key: str, calls: Sequence[Call], *, first: bool = False, last: bool = False) -> None:
        """Enqueue calls, after the copy of the inputs if ``first``, before that of the images if ``last``."""
        graph = self._graph(key, calls, first, last) if key in self._seen else None
        if graph is None:
            self._run_now(calls, first, last)
            self._seen.add(key)
        else:
            self.device.launch(graph)

    def _graph(self, key: str, calls: Sequence[Call], first: bool, last: bool) -> Graph | None:
        """Return the graph that is kept under ``key``, captured if need be; None if that is not allowed."""
        if key not in self._graphs and self._executor.can_capture(calls):
            self._graphs[key] = self.device.capture(self._work(calls, first, last))
            self._seen.add(key)
        return self._graphs.get(key)

    def _run_now(self, calls: Sequence[Call], first: bool, last: bool) -> None:
        """Enqueue calls without a graph; wait if an engine has run for the first time."""
        work = self._work(calls, first, last)
        for enqueue in work:
            enqueue()
        if not self._executor.is_warm(calls):
            self.device.wait()
            self._executor.has_run(calls)

    def _phase(self, calls: Sequence[Call]) -> list[str]:
        """Return the engines that ``calls`` take; a preview decoder comes and goes with the steps that it shows."""
        wanted, preview = [call.component for call in calls], self.program.preview.component
        together = [DENOISER, preview] if preview == PREVIEW_DECODER else []
        return [*wanted, *together] if {*wanted} & {*together} else wanted

    def _work(self, calls: Sequence[Call], first: bool, last: bool) -> list[Enqueue]:
        executor, device, images = self._executor, self.device, self.program.images
        work: list[Enqueue] = []
        if executor.low_memory and calls:
            executor.load_only(self._phase(calls))
        if first:
            work.append(lambda: device.copy_in(executor.block, executor.inputs[: self.program.input_bytes]))
        work += [executor.bind(call) for call in calls]
        if last:
            decoded = calls[-1].tensors[LATENTS] if calls else self.program.latents[-1]
            for held, place in ((executor.images, images), (executor.latents, decoded)):
                work.append(partial(device.copy_out, held[: place.nbytes], executor.block + place.offset))
        return work
