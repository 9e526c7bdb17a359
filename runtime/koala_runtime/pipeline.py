"""``Pipeline``: a bundle as a callable, with the arguments of diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, Unpack, cast

from koala_bundle.errors import ArgumentError, DeviceError
from koala_runtime.arguments import Arguments, Text
from koala_runtime.budget import budget
from koala_runtime.devices.base import Array
from koala_runtime.executor import Executor
from koala_runtime.finite import check_finite
from koala_runtime.inputs import EMBEDDINGS, Encoded, embed, prepare, source_pixels
from koala_runtime.opening import open_executor
from koala_runtime.output import DeviceImages, PipelineOutput, hand_over
from koala_runtime.process import Owner, refuse_copy
from koala_runtime.program import IMAGE, Program, make_encoder_program, make_program
from koala_runtime.prompts import open_encoder
from koala_runtime.recipe import Recipe, make_recipe
from koala_runtime.request import Request, make_request
from koala_runtime.run import Run
from koala_runtime.samplers import Scheduler, choose, make_scheduler
from koala_runtime.selection import EngineSet, open_engines
from koala_runtime.steps import Step, Steps, call_back, stepwise

_KEPT_RUNS = 4  # programs whose graphs are kept


class ProgramKey(NamedTuple):
    """Which program a picture takes: that of so many rows, with text encoders, with some of its large tables."""

    rows: int
    text_encoders: bool
    tables: tuple[str, ...]


class Pipeline:
    """Runs a bundle. Use it as a context manager; calls from several threads queue.

    ``target``: ``tensorrt``, ``rtx`` or ``cpu``; None takes the best that the bundle has engines for and this machine
    can run. ``low_memory`` keeps on the GPU only what the current phase needs (text encoders, U-Net, VAE) and loads
    the others again for each picture. ``device`` is the index of a visible GPU or its UUID, as `nvidia-smi -L` shows
    it; None takes the first. ``verify`` checks the digest of every file again instead of only of those that changed
    since they were checked. ``key``, a minisign public key or the file of one, must have signed the bundle and the
    engines in use. ``executor`` makes the executor from the chosen engines and ``low_memory``; pass your own to run
    components another way.

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
        key: str | Path | None = None,
        executor: Callable[[EngineSet, bool], Executor] = open_executor,
    ) -> None:
        self._owner = Owner(self)
        engines = open_engines(Path(bundle), target, device, verify=verify, key=key)
        self.manifest, self.target, self.digest = engines.manifest, engines.target, engines.digest
        self._scheduler = make_scheduler(engines.manifest.spec.scheduler)
        self.budget = budget(engines.manifest, engines.record)
        self._encoder = open_encoder(engines.path, self.manifest, engines.tokenizers)
        self.executor = executor(engines, low_memory)
        self._runs: dict[ProgramKey | None, Run] = {}
        self._turn = threading.Lock()
        self._drawing_thread: int | None = None
        self._closed = self._cancelled = False

    @property
    def scheduler(self) -> Scheduler:
        """What calls sample with; at first the checkpoint's own. Set another as in diffusers, or a short name:

            pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)

        Takes those of diffusers, too. Setting it raises ArgumentError for what cannot be computed.
        """
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = choose(scheduler, self._scheduler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise refuse_copy()

    def __del__(self) -> None:
        # Nothing else frees GPU memory while the process lives.
        with suppress(Exception):
            self.close()

    def close(self) -> None:
        """Free the engines and all memory; closing twice is harmless."""
        if not self._closed and self._owner.is_here:
            with self._exclusive():
                self._closed = True
                with suppress(DeviceError):
                    self._drop(*self._runs)
                self.executor.close()

    def cancel(self) -> None:
        """Let the call that is running in another thread return with the pictures that it has finished by then."""
        self._cancelled = True

    def __call__(self, prompt: Text | None = None, **arguments: Unpack[Arguments]) -> PipelineOutput:
        """Draw one picture per prompt, or ``num_images_per_prompt`` of each.

        The other arguments are those of diffusers' StableDiffusionXLPipeline; ``koala_runtime.Arguments`` has them all.
        Steps and guidance default to the bundle's own. With ``return_dict=False`` it returns the tuple ``(images,)``,
        which the type does not say.

        Raises ArgumentError for whatever cannot be drawn, and DeviceError if the GPU fails.
        """
        request = make_request(self.manifest, self.target, self._encoder, self._scheduler, prompt, arguments)
        steps = Steps(self._draw(request, one_by_one=request.callback is not None))
        if request.callback is not None:
            output = call_back(self, request.callback, steps)
        else:
            for _ in steps:
                pass
            output = steps.output
        return output if request.return_dict else cast("PipelineOutput", (output.images,))

    def steps(self, prompt: Text | None = None, **arguments: Unpack[Arguments]) -> Steps:
        """Draw step by step, in a loop of the caller's.

            for step in pipe.steps("a koala", seed=0):
                step.preview()

        Takes the arguments of a call but ``callback_on_step_end`` and ``timings``. Raises as a call does.
        """
        for name in ("callback_on_step_end", "timings"):
            if arguments.get(name):
                raise ArgumentError(name, expected="none in a loop over steps", found="one", fix="leave it out")
        request = make_request(self.manifest, self.target, self._encoder, self._scheduler, prompt, arguments)
        return Steps(self._draw(request, one_by_one=True))

    def set_progress_bar_config(self, **_: Any) -> None:
        """Take what diffusers' pipelines take, and do nothing: a call shows no progress bar. ``steps`` can feed one."""

    def _draw(self, request: Request, *, one_by_one: bool) -> Generator[Step, None, PipelineOutput]:
        """Draw batch after batch; yields after every step if they are taken ``one_by_one``."""
        batch, timesteps = self.manifest.profile.batch, request.table.timesteps
        pictures: list[Any] = []  # of each batch, or latents
        times: dict[str, list[float]] = {}
        with self._exclusive():
            if request.stream is not None:
                with self.executor.device.current():
                    self.executor.device.wait_stream(request.stream)
            for start in range(0, request.count, batch):
                if pictures and self._cancelled:
                    break
                chunk = slice(start, start + batch)
                inputs = self._inputs(request, chunk)
                with self._run(self._key(request, text_encoders=not request.embedded)) as run:
                    run.fill(inputs)
                    if one_by_one or request.output_type == "latent":
                        loop = stepwise(run, timesteps, decode=request.output_type != "latent")
                        if one_by_one:
                            yield from loop
                        else:
                            deque(loop, maxlen=0)
                    elif request.timings:
                        for part, seconds in run.timed():
                            times.setdefault(part, []).append(seconds)
                    else:
                        run.draw()
                    if request.output_type == "latent":
                        made = run.read(run.program.latents[-1])
                        check_finite(run, made)
                    else:
                        made = run.images
                        check_finite(run, run.final_latents)
                    made = made[: len(request.prompt.texts[chunk])]
                    if request.output_type == "device":
                        held = DeviceImages(run.images_address, made.shape, self)
                        return PipelineOutput(
                            held, request.noise.seed, self._recipes(request, len(made)), times or None
                        )
                    pictures.append(made.copy())
        recipes = self._recipes(request, sum(map(len, pictures)))
        return PipelineOutput(hand_over(pictures, request, recipes), request.noise.seed, recipes, times or None)

    def _inputs(self, request: Request, chunk: slice) -> dict[str, Array]:
        """Return the inputs of one batch; where embeddings are given or weighed, text encoders run before it."""
        inputs = prepare(self.manifest, request, chunk, self._encoded(request, chunk))
        if not request.embedded:
            return inputs
        with self._run(self._key(request, text_encoders=True)) as run:
            run.fill(inputs)
            run.encode()
            tensors = {name: place for call in run.program.encode for name, place in call.tensors.items()}
            encoded = {name: run.read(tensors[name]) for name in EMBEDDINGS}
        return embed(self.manifest, request, chunk, inputs, encoded)

    def _encoded(self, request: Request, chunk: slice) -> Encoded | None:
        """Return the latents of the pictures that a batch begins with."""
        if request.source is None:
            return None
        with self._run(None) as run:
            run.fill({IMAGE: source_pixels(request, chunk, self.manifest.profile.batch)})
            run.encode()
            (call,) = run.program.encode
            return Encoded(run.read(call.tensors["image_mean"]), run.read(call.tensors["image_std"]))

    def _recipes(self, request: Request, count: int) -> tuple[Recipe, ...]:
        return tuple(make_recipe(request, index, self.manifest, self.digest, self.target) for index in range(count))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Queue calls of several threads; refuse a call from inside a loop or callback, which would wait for itself."""
        self._owner.check()
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

    def _key(self, request: Request, *, text_encoders: bool) -> ProgramKey:
        drawn = ("noise",) if request.table.draws.any() else ()
        kept = ("kept",) if request.source is not None and request.source.mask is not None else ()
        return ProgramKey(len(request.table.timesteps), text_encoders, (*drawn, *kept))

    @contextmanager
    def _run(self, key: ProgramKey | None) -> Iterator[Run]:
        """Give the graphs of a program, of encoding pictures for None; after a failure they are not used again."""
        run = self._runs.pop(key, None)
        if run is None:
            program = self._program(key)
            if not self.executor.has_room(program):  # the graphs that there are refer to the memory that is given up
                self._drop(*self._runs)
            run = Run(self.executor, program)
        self._runs[key] = run  # most recent last
        if len(self._runs) > _KEPT_RUNS:
            self._drop(next(iter(self._runs)))
        try:
            yield run
        except DeviceError:
            with suppress(DeviceError):
                self._drop(key)
            with suppress(DeviceError):
                self.executor.unload()
            raise

    def _program(self, key: ProgramKey | None) -> Program:
        components, half = self.manifest.components, self.executor.half
        if key is None:
            return make_encoder_program(components)
        return make_program(components, key.rows, half=half, text_encoders=key.text_encoders, tables=key.tables)

    def _drop(self, *keys: ProgramKey | None) -> None:
        for key in keys:
            self._runs.pop(key).close()
