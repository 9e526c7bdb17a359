"""``Pipeline``: a bundle as a callable, with the arguments of diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from koala_runtime import requests
from koala_runtime.bundle import make_executor, open_engines
from koala_runtime.contract.manifest import TOKENIZERS
from koala_runtime.loop import Program, compose
from koala_runtime.noise import randn
from koala_runtime.prompts import PromptEncoder
from koala_runtime.schedule import Schedule, make_schedule

Floats = NDArray[np.float32]
StepCallback = Callable[["Pipeline", int, float, dict[str, Any]], dict[str, Any]]

_KEPT_PROGRAMS = 4  # numbers of steps whose buffers stay allocated


@dataclass(frozen=True)
class PipelineOutput:
    """``images``: a list of PIL images, or float32 [n, height, width, 3] in [0, 1]; ``seed`` repeats them."""

    images: Any
    seed: int | None


class Pipeline:
    """Runs a bundle. Use it as a context manager; calls from several threads queue.

    ``target``: ``cpu``; None takes the best target that the bundle has engines for and this machine can run.
    Raises BundleError and TargetError before anything is loaded.
    """

    def __init__(self, bundle: str | Path, target: str | None = None) -> None:
        engines = open_engines(Path(bundle), target)
        self.manifest = engines.manifest
        self.target = engines.target
        self._prompts = PromptEncoder((engines.path / TOKENIZERS[0], engines.path / TOKENIZERS[1]))
        self._executor = make_executor(engines)
        self._latent_shape = self.manifest.component("vae_decoder").inputs[0].shape
        self._programs: dict[int, Program] = {}
        self._lock = threading.RLock()
        self._busy = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines and all buffers; closing twice is harmless."""
        if not self._closed:
            with self._exclusive():
                self._closed = True
                self._programs.clear()
                self._executor.close()

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
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
    ) -> PipelineOutput:
        """Draw one picture per prompt.

        Steps and guidance default to the bundle's own. ``seed`` gives the noise that ``torch.randn`` draws with a CPU
        generator of this seed for all prompts together; ``latents`` (float32 [n, channels, height / 8, width / 8],
        unit variance) replaces it. ``guidance_scale`` of 1 or less switches guidance off, as in diffusers.
        ``callback_on_step_end(pipeline, step, timestep, {"latents": ...})`` may return other latents; with more
        prompts than the bundle's batch it sees the steps of each batch in turn. The sizes are
        SDXL's micro-conditioning, (height, width) in pixels, by default the bundle's own size.

        Raises ArgumentError for whatever cannot be drawn.
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
        shape = (len(request.prompts), *self._latent_shape[1:])
        used_seed = None
        if latents is None:
            used_seed = secrets.randbits(32) if request.seed is None else request.seed
            latents = randn(shape, used_seed)
        else:
            latents = requests.check_latents(latents, shape)
        schedule = make_schedule(self.manifest.spec.scheduler, request.num_inference_steps)
        batch = self.manifest.profile.batch
        pictures = []
        with self._exclusive():
            program = self._program(len(schedule.timesteps))
            for start in range(0, len(request.prompts), batch):
                chunk = slice(start, start + batch)
                self._fill(program, request, chunk, latents, schedule)
                self._run(program, schedule, callback_on_step_end)
                pictures.append(program.buffers["images"].read()[: len(request.prompts[chunk])])
        images = np.concatenate(pictures)
        if output_type == "pil":
            return PipelineOutput([Image.fromarray(image) for image in images], used_seed)
        return PipelineOutput(images.astype(np.float32) / np.float32(255), used_seed)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Queue calls of several threads; refuse a call from inside a callback, which would never get its turn."""
        with self._lock:
            if self._busy:
                raise RuntimeError("a pipeline cannot be called or closed by its own callback_on_step_end")
            if self._closed:
                raise RuntimeError("this pipeline is closed")
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

    def _program(self, steps: int) -> Program:
        program = self._programs.pop(steps, None) or compose(self._executor, self.manifest.components, steps)
        self._programs[steps] = program  # most recent last
        if len(self._programs) > _KEPT_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        return program

    def _fill(
        self,
        program: Program,
        request: requests.Request,
        chunk: slice,
        latents: Floats,
        schedule: Schedule,
    ) -> None:
        profile, buffers = self.manifest.profile, program.buffers
        prompts = _pad(request.prompts[chunk], profile.batch)
        negatives = _pad(request.negative_prompts[chunk], profile.batch) if profile.cfg else []
        texts = [*negatives, *prompts]
        ids, ids_2 = self._prompts.encode([text or "" for text in texts])
        buffers["input_ids"].write(ids)
        buffers["input_ids_2"].write(ids_2)
        zeroed = self.manifest.spec.force_zeros_for_empty_prompt
        mask = [0.0 if text is None and zeroed else 1.0 for text in texts]
        buffers["prompt_mask"].write(np.array(mask, np.float32))
        buffers["time_ids"].write(np.tile(request.time_ids, (profile.rows, 1)))
        if profile.cfg:
            # At 1 the guided prediction is the prompt's own: u + 1 * (c - u) = c.
            buffers["guidance_scale"].write(np.array([max(request.guidance_scale, 1.0)], np.float32))
        count = len(schedule.timesteps)
        buffers["timestep"].write(schedule.timesteps.reshape(count, 1))
        buffers["sigma"].write(schedule.sigmas[:-1].reshape(count, 1))
        buffers["sigma_next"].write(schedule.sigmas[1:].reshape(count, 1))
        noise = np.zeros((profile.batch, *latents.shape[1:]), np.float32)
        part = latents[chunk]
        noise[: len(part)] = part * np.float32(schedule.init_noise_sigma)
        program.latents[0].write(noise)

    def _run(self, program: Program, schedule: Schedule, callback: StepCallback | None) -> None:
        for stage in program.encode:
            stage()
        for step, stage in enumerate(program.steps):
            stage()
            if callback is not None:
                latents = program.latents[step + 1]
                returned = callback(self, step, float(schedule.timesteps[step]), {"latents": latents.read()})
                if returned and "latents" in returned:
                    latents.write(requests.check_latents(returned["latents"], self._latent_shape))
        program.decode()


def _pad(items: list[Any], length: int) -> list[Any]:
    """Repeat the last item: a static batch always runs in full."""
    return items + items[-1:] * (length - len(items))
