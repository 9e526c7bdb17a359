"""diffusers as a backend, eager and compiled; and a base class for every pipeline with diffusers' interface."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from koala_bench.backends.base import HOST, STEPS, TEXT, VAE, Workload
from koala_bundle.manifest import Manifest, read_manifest
from koala_verify.pixels import Pixels


class DiffusersPipeline:
    """A pipeline with diffusers' interface: the call, and hooks that time its phases."""

    def __init__(self, workload: Workload, manifest: Manifest, pipe: Any, device: str) -> None:
        import torch

        self._workload, self._pipe, self._torch, self._device = workload, pipe, torch, device
        profile = manifest.profile
        self._compiled_in = {"height": profile.height, "width": profile.width}
        if profile.clip_skip:
            self._compiled_in["clip_skip"] = profile.clip_skip
        self._batch = profile.batch
        pipe.set_progress_bar_config(disable=True)

    def draw(self) -> Pixels:
        """Return the pictures."""
        workload = self._workload
        generator = self._torch.Generator().manual_seed(workload.seed)
        images = self._pipe(
            [workload.prompt] * self._batch,
            num_inference_steps=workload.steps,
            guidance_scale=workload.guidance_scale,
            generator=generator,
            **self._compiled_in,
        ).images
        return np.stack([np.asarray(image) for image in images])

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase."""
        times = dict.fromkeys((TEXT, STEPS, VAE), 0.0)
        pipe = self._pipe
        hooks = ((pipe, "encode_prompt", TEXT), (pipe.unet, "forward", STEPS), (pipe.vae, "decode", VAE))
        with ExitStack() as timed:
            for owner, name, phase in hooks:
                timed.enter_context(self._timed(owner, name, phase, times))
            started = time.perf_counter()
            self.draw()
            total = time.perf_counter() - started
        return {**times, HOST: total - sum(times.values())}

    @contextmanager
    def _timed(self, owner: Any, name: str, phase: str, times: dict[str, float]) -> Iterator[None]:
        """Add the seconds that each call of a method takes, including its work on the GPU, to ``times[phase]``."""
        before = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self._wait()
            started = time.perf_counter()
            result = before(*arguments, **named)
            self._wait()
            times[phase] += time.perf_counter() - started
            return result

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, before)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class Diffusers(DiffusersPipeline):
    """diffusers' pipeline, optimized as its documentation recommends: SDPA, channels-last, float16 on a GPU."""

    packages: tuple[str, ...] = ("diffusers", "transformers", "torch", "accelerate", "safetensors")
    half_on_gpu = True

    def __init__(self, workload: Workload) -> None:
        import torch

        from koala_export.checkpoint import FolderCheckpoint
        from koala_export.source import open_source
        from koala_verify.reference import open_diffusers

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device == "cuda" and self.half_on_gpu else torch.float32
        manifest = read_manifest(Path(workload.bundle))
        checkpoint = open_source(
            workload.source, random_weights=False, precision=manifest.profile.precision, loras=workload.loras
        )
        assert isinstance(checkpoint, FolderCheckpoint)
        pipe = open_diffusers(checkpoint.folder, manifest, dtype, loras=checkpoint.loras)
        pipe.to(device)
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
        super().__init__(workload, manifest, pipe, device)


class Reference(Diffusers):
    """diffusers in float32 on every device: the reference for PSNR."""

    half_on_gpu = False


class DiffusersCompiled(Diffusers):
    """diffusers' pipeline with torch.compile of U-Net and VAE; with CUDA graphs and max-autotune on a GPU.

    ``prepare`` fills inductor's cache, as building engines does for koala, so starts are measured with a warm cache.
    """

    @staticmethod
    def prepare(workload: Workload) -> None:
        """Compile, to fill inductor's cache."""
        DiffusersCompiled(workload).draw()

    def __init__(self, workload: Workload) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(workload.scratch) / "inductor")
        super().__init__(workload)
        pipe, torch = self._pipe, self._torch
        mode = "max-autotune" if self._device == "cuda" else "default"
        pipe.unet = torch.compile(pipe.unet, mode=mode, fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode, fullgraph=True)
