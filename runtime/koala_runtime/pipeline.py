"""``Pipeline``: a bundle as a callable, with the arguments of diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from koala_bundle import __version__
from koala_bundle.errors import ArgumentError, DeviceError
from koala_bundle.manifest import TOKENIZERS
from koala_runtime.budget import budget
from koala_runtime.executor import Executor
from koala_runtime.inputs import prepare
from koala_runtime.opening import open_executor
from koala_runtime.output import DeviceImages, PipelineOutput, hand_over, join
from koala_runtime.program import make_program
from koala_runtime.prompts import PromptEncoder
from koala_runtime.recipe import SCHEMA_VERSION, Recipe
from koala_runtime.request import Callback, Floats, Request, make_request
from koala_runtime.run import Run
from koala_runtime.selection import EngineSet, open_engines
from koala_runtime.steps import Step, Steps, call_back, stepwise

_KEPT_RUNS = 4  # numbers of steps whose graphs are kept


class Pipeline:
    """Runs a bundle. Use it as a context manager; calls from several threads queue.

    ``target``: ``tensorrt``, ``rtx`` or ``cpu``; None takes the best that the bundle has engines for and this machine
    can run. ``low_memory`` keeps on the GPU only what the current phase needs (text encoders, U-Net, VAE) and loads
    the others again for each picture. ``device`` is the index of a visible GPU or its UUID, as `nvidia-smi -L` shows
    it; None takes the first. ``verify`` checks the digest of every file again instead of only of those that changed
    since they were checked. ``executor`` makes the executor from the chosen engines and ``low_memory``; pass your own
    to run components another way.

    Attributes: ``manifest``, ``target`` (a ``koala_bundle.targets.Target``), ``budget`` (device memory that a picture
    takes), ``executor``.
    Raises BundleError and TargetError before anything is loaded, DeviceError if the GPU has too little memory.
    """

    def __init__(
        self,
        bundle: str | Path,
        target: str | None = None,
        *,
        low_memory: bool = False,
        device: int | str | None = None,
        verify: bool = False,
        executor: Callable[[EngineSet, bool], Executor] = open_executor,
    ) -> None:
        engines = open_engines(Path(bundle), target, device, verify=verify)
        self.manifest, self.target, self.digest = engines.manifest, engines.target, engines.digest
        self.budget = budget(engines.manifest, engines.record)
        self._encoder = PromptEncoder((engines.path / TOKENIZERS[0], engines.path / TOKENIZERS[1]))
        self.executor = executor(engines, low_memory)
        self._runs: dict[int, Run] = {}
        self._turn = threading.Lock()
        self._drawing_thread: int | None = None
        self._closed = self._cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing else frees GPU memory while the process lives.
        with suppress(Exception):
            self.close()

    def close(self) -> None:
        """Free the engines and all memory; closing twice is harmless."""
        if not self._closed:
            with self._exclusive():
                self._closed = True
                with suppress(DeviceError):
                    self._drop(*self._runs)
                self.executor.close()

    def cancel(self) -> None:
        """Let the call that is running in another thread return with the pictures that it has finished by then."""
        self._cancelled = True

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        latents: Floats | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_steps: int = 1,
        timings: bool = False,
        stream: Any = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
    ) -> PipelineOutput:
        """Draw one picture per prompt.

        Steps and guidance default to the bundle's own. ``seed`` gives the noise that ``torch.randn`` draws with a CPU
        generator of this seed for all prompts together; ``latents`` (float32 [n, channels, height / 8, width / 8],
        unit variance) replaces it. ``guidance_scale`` of 1 or less switches guidance off, as in diffusers.
        ``output_type``: ``pil``, ``np`` or, on a GPU and for no more prompts than the bundle's batch, ``device``.

        ``callback_on_step_end(pipeline, step, timestep, {"latents": ...})`` is called after every ``callback_steps``
        steps and may return other latents; with ``images`` among its tensors it also gets a preview, uint8 [batch,
        height, width, 3]. With more prompts than the bundle's batch it sees the steps of each batch in turn.
        ``timings`` measures each part of the picture, and excludes a callback. ``stream`` is a CUDA stream (an integer,
        or anything with ``__cuda_stream__``): drawing begins when the work that it holds so far is done, such as the
        last use of DeviceImages. The sizes are SDXL's micro-conditioning, (height, width) in pixels, by default the
        bundle's own size.

        Raises ArgumentError for whatever cannot be drawn, and DeviceError if the GPU fails.
        """
        request = make_request(
            self.manifest,
            self.target,
            self._encoder,
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            callback_steps=callback_steps,
            timings=timings,
            stream=stream,
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
        )
        steps = Steps(self._draw(request, one_by_one=request.callback is not None))
        if request.callback is not None:
            return call_back(self, request.callback, steps)
        for _ in steps:
            pass
        return steps.output

    def steps(self, prompt: str | Sequence[str], **arguments: Any) -> Steps:
        """Draw step by step, in a loop of the caller's.

            for step in pipe.steps("a koala", seed=0):
                step.preview()

        Takes the arguments of a call but ``callback_on_step_end`` and ``timings``. Raises as a call does.
        """
        for name in ("callback_on_step_end", "timings"):
            if arguments.get(name):
                raise ArgumentError(name, expected="none in a loop over steps", found="one", fix="leave it out")
        request = make_request(self.manifest, self.target, self._encoder, prompt=prompt, **arguments)
        return Steps(self._draw(request, one_by_one=True))

    def _draw(self, request: Request, *, one_by_one: bool) -> Generator[Step, None, PipelineOutput]:
        """Draw batch after batch; yields after every step if they are taken ``one_by_one``."""
        batch, timesteps = self.manifest.profile.batch, request.schedule.timesteps
        pictures: list[Any] = []  # of each batch, as they are handed over
        times: dict[str, list[float]] = {}
        with self._exclusive():
            if request.stream is not None:
                with self.executor.device.current():
                    self.executor.device.wait_stream(request.stream)
            for start in range(0, len(request.prompts), batch):
                if pictures and self._cancelled:
                    break
                chunk = slice(start, start + batch)
                with self._run(len(timesteps)) as run:
                    run.fill(prepare(self.manifest, request, chunk))
                    if one_by_one:
                        yield from stepwise(run, timesteps)
                    elif request.timings:
                        for part, seconds in run.timed():
                            times.setdefault(part, []).append(seconds)
                    else:
                        run.draw()
                    images = run.images[: len(request.prompts[chunk])]
                    if request.output_type == "device":
                        held = DeviceImages(run.images_address, images.shape, self)
                        return self._output(request, held, len(images), times)
                    pictures.append(hand_over(images, request.output_type))
        drawn = join(pictures)
        return self._output(request, drawn, len(drawn), times)

    def _output(self, request: Request, images: Any, count: int, times: dict[str, list[float]]) -> PipelineOutput:
        recipes = tuple(self._recipe(request, index) for index in range(count))
        return PipelineOutput(images, request.seed, recipes, times or None)

    def _recipe(self, request: Request, index: int) -> Recipe:
        profile, sizes = self.manifest.profile, [float(side) for side in request.time_ids]
        return Recipe(
            schema_version=SCHEMA_VERSION,
            version=__version__,
            bundle=self.digest,
            target=self.target.name,
            prompt=request.prompts[index],
            negative_prompt=request.negative_prompts[index],
            seed=request.seed,
            index=index,
            count=len(request.prompts),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            sampler="Euler",
            height=profile.height,
            width=profile.width,
            original_size=tuple(sizes[:2]),
            crops_coords_top_left=tuple(sizes[2:4]),
            target_size=tuple(sizes[4:]),
        )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Queue calls of several threads; refuse a call from inside a loop or callback, which would wait for itself."""
        if self._drawing_thread == threading.get_ident():
            raise RuntimeError(
                "a pipeline cannot be called or closed by its own callback_on_step_end or loop over steps; "
                "let the loop end, or close() it, first"
            )
        with self._turn:
            if self._closed:
                raise RuntimeError("this pipeline is closed")
            self._drawing_thread, self._cancelled = threading.get_ident(), False
            try:
                yield
            finally:
                self._drawing_thread = None

    @contextmanager
    def _run(self, steps: int) -> Iterator[Run]:
        """Give the graphs for a number of steps; after a failure they are not used again."""
        run = self._runs.pop(steps, None)
        if run is None:
            program = make_program(self.manifest.components, steps, half=self.executor.half)
            if not self.executor.has_room(program):  # the graphs that there are refer to the memory that is given up
                self._drop(*self._runs)
            run = Run(self.executor, program)
        self._runs[steps] = run  # most recent last
        if len(self._runs) > _KEPT_RUNS:
            self._drop(next(iter(self._runs)))
        try:
            yield run
        except DeviceError:
            with suppress(DeviceError):
                self._drop(steps)
            with suppress(DeviceError):
                self.executor.unload()
            raise

    def _drop(self, *steps: int) -> None:
        for count in steps:
            self._runs.pop(count).close()
