"""Denoising steps as a loop of the caller's: ``for step in pipe.steps(prompt): ...``."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError
from koala_runtime.arrays import Floats, read_latents
from koala_runtime.output import PipelineOutput
from koala_runtime.process import Owner
from koala_runtime.request import StepCallback
from koala_runtime.run import Run


class Step:
    """A step that has just been computed; valid until the loop asks for the next.

    ``index`` counts from 0, ``timestep`` is the U-Net's conditioning value, ``count`` the number of steps.
    """

    def __init__(self, run: Run, index: int, count: int, timestep: float) -> None:
        self._run, self._place = run, run.program.latents[index + 1]
        self.index, self.count, self.timestep = index, count, timestep

    @property
    def latents(self) -> Floats:
        """A copy of the latents after this step, float32 [batch, channels, height / 8, width / 8].

        Assign to it, and the next step starts from what was assigned. Raises ArgumentError for another shape.
        """
        return self._run.read(self._place)

    @latents.setter
    def latents(self, values: Floats) -> None:
        self._run.write(self._place, read_latents(values, self._place.shape))

    def preview(self) -> NDArray[np.uint8]:
        """Decode the latents now: uint8 [batch, height, width, 3].

        Costs one run of the bundle's preview decoder, or of the VAE decoder where it has none.
        """
        self._run.decode(self.index)
        preview: NDArray[np.uint8] = self._run.images.copy()
        return preview


class Steps(Iterator[Step]):
    """The steps of a call, batch after batch; nothing is drawn before the first is asked for.

    ``output`` is what the call returns, there once the loop has ended. A loop that is left early should be closed, or
    used as a context manager: until then the pipeline is busy.
    """

    def __init__(self, drawing: Generator[Step, None, PipelineOutput]) -> None:
        self._drawing, self._owner = drawing, Owner(self)
        self._output: PipelineOutput | None = None

    def __next__(self) -> Step:
        self._owner.check()
        try:
            return next(self._drawing)
        except StopIteration as ended:
            self._output = ended.value or self._output
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loop early; the picture that is being drawn is given up."""
        self._drawing.close()

    @property
    def output(self) -> PipelineOutput:
        """The pictures. Raises ArgumentError while there are steps left."""
        if self._output is None:
            raise ArgumentError(
                "output", expected="all steps done", found="steps left", fix="let the loop over the steps end first"
            )
        return self._output


def stepwise(run: Run, timesteps: Floats, *, decode: bool = True) -> Iterator[Step]:
    """Draw the program that ``run`` holds, step by step; with ``decode`` the images are there at the end."""
    run.encode()
    for index, timestep in enumerate(timesteps):
        run.step(index)
        yield Step(run, index, len(timesteps), float(timestep))
    if decode:
        run.decode()


def call_back(pipeline: object, callback: StepCallback, steps: Steps) -> PipelineOutput:
    """Run a loop for a callback of diffusers' kind (``callback_on_step_end``) and return what it draws."""
    with steps:
        for step in steps:
            if (step.index + 1) % callback.every:
                continue
            tensors = {name: step.latents if name == "latents" else step.preview() for name in callback.tensors}
            returned = callback.function(pipeline, step.index, step.timestep, tensors)
            if returned is not None and not isinstance(returned, Mapping):
                raise ArgumentError(
                    "callback_on_step_end",
                    expected="a function that returns a dict of tensors, or None",
                    found=f"one that returned {type(returned).__name__}",
                    fix='return {"latents": latents}',
                )
            if returned and "latents" in returned:
                step.latents = returned["latents"]
        return steps.output
