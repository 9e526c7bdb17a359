"""``Pipeline``: a bundle as a callable, with the arguments of diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from koala_runtime import requests
from koala_runtime.bundle import make_executor, open_engines
from koala_runtime.contract.errors import DeviceError
from koala_runtime.contract.manifest import TOKENIZERS
from koala_runtime.executor import Run
from koala_runtime.loop import compose
from koala_runtime.memory import budget
from koala_runtime.noise import randn
from koala_runtime.prompts import PromptEncoder
from koala_runtime.schedule import Schedule, make_schedule

Floats = NDArray[np.float32]
StepCallback = Callable[["Pipeline", int, float, dict[str, Any]], dict[str, Any]]

_KEPT_RUNS = 4  # numbers of steps whose memory and graphs are kept


@dataclass(frozen=True)
class DeviceImages:
    """Pictures in the memory of a GPU, uint8 [n, height, width, 3], for as long as the pipeline draws no others.

    ``torch.as_tensor(images, device="cuda")``, CuPy and Numba take it without a copy.
    """

    address: int
    shape: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol (Numba's documentation); no stream, because the pictures are finished."""
        return {"shape": self.shape, "typestr": "|u1", "data": (self.address, False), "strides": None, "version": 3}


@dataclass(frozen=True)
class PipelineOutput:
    """``images``: a list of PIL images, or float32 [n, height, width, 3] in [0, 1], or DeviceImages.

    ``seed`` repeats them. ``timings``, if they were asked for: seconds by the device's clock of each run of each
    component and of both copies.
    """

    images: Any
    seed: int | None
    timings: dict[str, list[float]] | None = None


class Pipeline:
    """Runs a bundle. Use it as a context manager; calls from several threads queue.

    ``target``: ``tensorrt``, ``rtx`` or ``cpu``; None takes the best that the bundle has engines for and this machine
    can run. ``low_memory`` keeps on the GPU only what the phase needs that a picture is in (text encoders, U-Net, VAE),
    and loads the others again for each picture.
    Raises BundleError and TargetError before anything is loaded, DeviceError if the GPU has too little memory.
    """

    def __init__(self, bundle: str | Path, target: str | None = None, *, low_memory: bool = False) -> None:
        engines = open_engines(Path(bundle), target)
        self.manifest = engines.manifest
        self.target = engines.target
        self.budget = budget(engines.manifest, engines.record)
        self._prompts = PromptEncoder((engines.path / TOKENIZERS[0], engines.path / TOKENIZERS[1]))
        self._executor = make_executor(engines, low_memory=low_memory)
        self._latent_shape = self.manifest.component("vae_decoder").inputs[0].shape
        self._runs: dict[int, Run] = {}
        self._lock = threading.RLock()
        self._busy = self._closed = self._cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Memory of a GPU is freed by nobody else while the process lives.
        with suppress(Exception):
            self.close()

    def close(self) -> None:
        """Free the engines and all memory; closing twice is harmless."""
        if not self._closed:
            with self._exclusive():
                self._closed = True
                with suppress(DeviceError), self._executor.device.current():
                    self._drop(*self._runs)
                self._executor.close()

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
        callback_on_step_end: StepCallback | None = None,
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
        steps and may return other latents; with ``images`` among its tensors it also gets what they look like, uint8
        [batch, height, width, 3]. With more prompts than the bundle's batch it sees the steps of each batch in turn.
        ``timings`` has each part of the picture timed, and neither goes with the other. ``stream`` is a CUDA stream
        (an integer, or anything with ``__cuda_stream__``): drawing begins when the work in it so far is done, such as
        the last use of DeviceImages. The sizes are SDXL's micro-conditioning, (height, width) in pixels, by default
        the bundle's own size.

        Raises ArgumentError for whatever cannot be drawn, and DeviceError if the GPU fails.
        """
        request = requests.check(
            self.manifest,
            prompt,
            negative_prompt,
            num_inference_steps,
            guidance_scale,
            seed,
            {
                "original_size": original_size,
                "crops_coords_top_left": crops_coords_top_left,
                "target_size": target_size,
            },
            output_type,
        )
        watch = requests.check_watch(
            callback_on_step_end is not None, callback_on_step_end_tensor_inputs, callback_steps, timings
        )
        after = requests.check_device(self.manifest, self.target, len(request.prompts), output_type, stream)
        shape = (len(request.prompts), *self._latent_shape[1:])
        used_seed = None
        if latents is None:
            used_seed = secrets.randbits(32) if request.seed is None else request.seed
            latents = randn(shape, used_seed)
        else:
            latents = requests.check_latents(latents, shape)
        schedule = make_schedule(self.manifest.spec.scheduler, request.num_inference_steps)
        batch = self.manifest.profile.batch
        pictures: list[Any] = []
        times: dict[str, list[float]] = {}
        with self._exclusive(), self._executor.device.current():
            if after is not None:
                self._executor.device.after(after)
            for start in range(0, len(request.prompts), batch):
                if pictures and self._cancelled:
                    break
                chunk = slice(start, start + batch)
                count = len(request.prompts[chunk])
                with self._run(len(schedule.timesteps)) as run:
                    self._fill(run, request, chunk, latents, schedule)
                    if timings:
                        for part, seconds in run.timed():
                            times.setdefault(part, []).append(seconds)
                    elif callback_on_step_end is None:
                        run.draw()
                    else:
                        self._draw_watched(run, schedule, callback_on_step_end, watch, callback_steps)
                    if output_type == "device":
                        address = run.block + run.program.images.offset
                        return PipelineOutput(
                            DeviceImages(address, (count, *run.images.shape[1:])), used_seed, times or None
                        )
                    pictures.append(run.images[:count].copy())
        images = np.concatenate(pictures)
        shown = (
            [Image.fromarray(image) for image in images]
            if output_type == "pil"
            else images.astype(np.float32) / np.float32(255)
        )
        return PipelineOutput(shown, used_seed, times or None)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Queue calls of several threads; refuse a call from inside a callback, which would never get its turn."""
        with self._lock:
            if self._busy:
                raise RuntimeError("a pipeline cannot be called or closed by its own callback_on_step_end")
            if self._closed:
                raise RuntimeError("this pipeline is closed")
            self._busy, self._cancelled = True, False
            try:
                yield
            finally:
                self._busy = False

    @contextmanager
    def _run(self, steps: int) -> Iterator[Run]:
        """Give the memory and graphs for a number of steps; after a failure they are not used again."""
        run = self._runs.pop(steps, None)
        if run is None:
            run = Run(self._executor, compose(self.manifest.components, steps, half=self._executor.half))
        self._runs[steps] = run  # most recent last
        if len(self._runs) > _KEPT_RUNS:
            self._drop(next(iter(self._runs)))
        try:
            yield run
        except DeviceError:
            with suppress(DeviceError):
                self._drop(steps)
            with suppress(DeviceError):
                self._executor.rest()
            raise

    def _drop(self, *steps: int) -> None:
        for count in steps:
            self._runs.pop(count).close()

    def _fill(self, run: Run, request: requests.Request, chunk: slice, latents: Floats, schedule: Schedule) -> None:
        profile = self.manifest.profile
        prompts = _pad(request.prompts[chunk], profile.batch)
        negatives = _pad(request.negative_prompts[chunk], profile.batch) if profile.cfg else []
        texts = [*negatives, *prompts]
        ids, ids_2 = self._prompts.encode([text or "" for text in texts])
        run.fill("input_ids", ids)
        run.fill("input_ids_2", ids_2)
        zeroed = self.manifest.spec.force_zeros_for_empty_prompt
        mask = [0.0 if text is None and zeroed else 1.0 for text in texts]
        run.fill("prompt_mask", np.array(mask, np.float32))
        run.fill("time_ids", np.tile(request.time_ids, (profile.rows, 1)))
        if profile.cfg:
            # At 1 the guided prediction is the prompt's own: u + 1 * (c - u) = c.
            run.fill("guidance_scale", np.array([max(request.guidance_scale, 1.0)], np.float32))
        count = len(schedule.timesteps)
        run.fill("timestep", schedule.timesteps.reshape(count, 1))
        run.fill("sigma", schedule.sigmas[:-1].reshape(count, 1))
        run.fill("sigma_next", schedule.sigmas[1:].reshape(count, 1))
        noise = np.zeros((profile.batch, *latents.shape[1:]), np.float32)
        part = latents[chunk]
        noise[: len(part)] = part * np.float32(schedule.init_noise_sigma)
        run.fill("latents", noise)

    def _draw_watched(
        self, run: Run, schedule: Schedule, callback: StepCallback, watch: Sequence[str], every: int
    ) -> None:
        run.encode()
        for step, place in enumerate(run.program.latents[1:]):
            run.step(step)
            if (step + 1) % every:
                continue
            tensors: dict[str, Any] = {}
            if "latents" in watch:
                tensors["latents"] = run.read(place)
            if "images" in watch:
                run.decode(step)
                tensors["images"] = run.images.copy()
            returned = callback(self, step, float(schedule.timesteps[step]), tensors)
            if returned and "latents" in returned:
                run.write(place, requests.check_latents(returned["latents"], self._latent_shape))
        run.decode()


def _pad(items: list[Any], length: int) -> list[Any]:
    """Repeat the last item: a static batch always runs in full."""
    return items + items[-1:] * (length - len(items))
