"""Runs programs: puts their memory on a device, binds engines to it, captures what they enqueue, launches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from koala_bundle.errors import DeviceError
from koala_runtime.devices.base import Array, Device, Engine, Enqueue, Graph, Tensor
from koala_runtime.program import LATENTS, Call, Placement, Program

COPY_IN, COPY_OUT = "copy in", "copy out"


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
    """The engines of one bundle on one device, with one scratch memory for all of them: no two run at once.

    ``load`` loads the plan of a component, ``half`` is the dtype of float16 tensors on this device. With ``low_memory``
    engines are loaded when their turn comes, again in each picture, and no graphs are kept. Raises DeviceError.
    """

    def __init__(
        self, device: Device, load: Callable[[str], Engine], names: Sequence[str], half: str, low_memory: bool = False
    ) -> None:
        self.device, self.half, self.low_memory = device, half, low_memory
        self._load = load
        self._engines: dict[str, Engine] = {}
        self._warm: set[str] = set()  # those that have run since they were loaded
        self._activations = 0
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
            self._engines[name] = self._load(name)
        if most := max((engine.activation_bytes for engine in self._engines.values()), default=0):
            self._activations = self.device.allocate(most)

    def bind(self, call: Call, block: int) -> Enqueue:
        """Return what enqueues ``call`` on memory whose block begins at ``block``."""
        tensors = {name: Tensor(block + at.offset, at.dtype, at.shape) for name, at in call.tensors.items()}
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
        """Whether the engines of ``calls`` have run since they were loaded, as capturing them takes."""
        return {call.component for call in calls} <= self._warm

    def has_run(self, calls: Iterable[Call]) -> None:
        """Note that the engines of ``calls`` have run, and let them persist what they compiled."""
        for name in {call.component for call in calls}:
            self._warm.add(name)
            self._engines[name].save_kernel_cache()

    def _release(self) -> None:
        self._warm.clear()
        if self._activations:
            self.device.release(self._activations)
            self._activations = 0
        while self._engines:
            self._engines.popitem()[1].close()

    def close(self) -> None:
        """Free the engines and their memory. Never raises: on a device that failed there is nothing left to free."""
        try:
            with self.device.current():
                self._release()
        except DeviceError:
            self._engines.clear()
        self.device.close()


class Run:
    """A program with its memory: one block on the device, and on the host what goes there and comes back."""

    def __init__(self, executor: Executor, program: Program) -> None:
        self.program, self.device = program, executor.device
        self._executor = executor
        self._graphs: dict[str, Graph] = {}
        self._pinned: list[Array] = []
        with self.device.current():
            self.block = self.device.allocate(program.nbytes)
            try:
                self._pinned += [self.device.pin(program.input_bytes)]
                self._pinned += [self.device.pin(program.images.nbytes)]
            except BaseException:
                with suppress(DeviceError):  # the first error says more
                    self.close()
                raise
        self._inputs, images = self._pinned
        self.images: Array = images.view(program.images.dtype).reshape(program.images.shape)

    def fill(self, inputs: Mapping[str, Array]) -> None:
        """Set inputs by name: whole tensors, or of a table the first items of the first rows, [rows, items]."""
        for name, values in inputs.items():
            place = self.program.inputs[name]
            held = self._inputs[place.offset : place.end].view(np.dtype(place.dtype)).reshape(place.shape)
            if values.dtype != held.dtype:
                raise ValueError(f"{name} is {held.dtype}, not {values.dtype}")
            if values.shape != held.shape:
                held = held[: values.shape[0], : values.shape[1]]
            held[...] = values

    @on_device
    def draw(self) -> None:
        """Run everything and wait: one launch, where graphs are kept."""
        program = self.program
        if self._executor.low_memory:
            self.encode()
            for index in range(len(program.steps)):
                self.step(index)
            self.decode()
            self._executor.unload()
        else:
            self._enqueue("picture", program.calls, first=True, last=True)
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
        """Enqueue the decoding of the finished latents, or of those after step ``after``, and wait for the images."""
        call = self.program.decode if after is None else self.program.decode_after(after)
        self._enqueue(f"decode {call.tensors[LATENTS].offset}", (call,), last=True)
        self.device.wait()

    @on_device
    def compute(self, call: Call) -> None:
        """Run one call by itself and wait."""
        if self._executor.low_memory:
            self._executor.load_only([call.component])
        self._executor.bind(call, self.block)()
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
            self.device.copy_out(pinned, self.block + place.offset)
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
            self.device.copy_in(self.block + place.offset, pinned)
            self.device.wait()
        finally:
            self.device.unpin(pinned)

    @on_device
    def close(self) -> None:
        """Free the graphs and the memory."""
        while self._graphs:
            self.device.drop(self._graphs.popitem()[1])
        while self._pinned:
            self.device.unpin(self._pinned.pop())
        if self.block:
            self.device.release(self.block)
            self.block = 0

    def _enqueue(self, key: str, calls: Sequence[Call], *, first: bool = False, last: bool = False) -> None:
        """Enqueue calls, after the copy of the inputs if ``first``, before that of the images if ``last``.

        They are captured once and kept under ``key``. An engine's first run cannot be captured: then it is the work
        itself, and the capture is for the next time.
        """
        if self._executor.low_memory:
            self._run_now(calls, first, last)
        elif key in self._graphs or self._executor.is_warm(calls):
            self.device.launch(self._graph(key, calls, first, last))
        else:
            self._graph(key, calls, first, last)

    def _graph(self, key: str, calls: Sequence[Call], first: bool, last: bool) -> Graph:
        """Return the graph of calls; if an engine in it has not run yet, this runs them first."""
        if key not in self._graphs:
            if not self._executor.is_warm(calls):
                self._run_now(calls, first, last)
            self._graphs[key] = self.device.capture(self._work(calls, first, last))
        return self._graphs[key]

    def _run_now(self, calls: Sequence[Call], first: bool, last: bool) -> None:
        """Enqueue calls without a graph; wait if an engine has run for the first time."""
        work = self._work(calls, first, last)
        for enqueue in work:
            enqueue()
        if not self._executor.is_warm(calls):
            self.device.wait()
            self._executor.has_run(calls)

    def _work(self, calls: Sequence[Call], first: bool, last: bool) -> list[Enqueue]:
        work: list[Enqueue] = []
        if self._executor.low_memory and calls:
            self._executor.load_only(call.component for call in calls)
        if first:
            work.append(lambda: self.device.copy_in(self.block, self._inputs))
        work += [self._executor.bind(call, self.block) for call in calls]
        if last:
            images = self._pinned[1]
            work.append(lambda: self.device.copy_out(images, self.block + self.program.images.offset))
        return work
