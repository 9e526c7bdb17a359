"""Pipelines of diffusers' kind as backends: diffusers itself, and optimum-onnx with the same interface."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from koala_bench.backends import HOST, STEPS, TEXT, VAE, Work
from koala_bundle.manifest import Manifest, read_manifest
from koala_verify.pixels import Pixels


class _Pipeline:
    """What both have in common: the call, and hooks that time its parts."""

    def __init__(self, work: Work, manifest: Manifest, pipe: Any, device: str) -> None:
        import torch

        self._work, self._pipe, self._torch, self._device = work, pipe, torch, device
        profile = manifest.profile
        self._size = {"height": profile.height, "width": profile.width}
        self._batch = profile.batch
        pipe.set_progress_bar_config(disable=True)

    def draw(self) -> Pixels:
        """Return the pictures."""
        work = self._work
        generator = self._torch.Generator().manual_seed(work.seed)
        images = self._pipe(
            [work.prompt] * self._batch,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale,
            generator=generator,
            **self._size,
        ).images
        return np.stack([np.asarray(image) for image in images])

    def parts(self) -> dict[str, float]:
        """Return the seconds of each of PARTS."""
        times = dict.fromkeys((TEXT, STEPS, VAE), 0.0)
        pipe = self._pipe
        hooks = ((pipe, "encode_prompt", TEXT), (pipe.unet, "forward", STEPS), (pipe.vae, "decode", VAE))
        with ExitStack() as timed:
            for owner, name, part in hooks:
                timed.enter_context(self._timed(owner, name, part, times))
            started = time.perf_counter()
            self.draw()
            whole = time.perf_counter() - started
        return {**times, HOST: whole - sum(times.values())}

    @contextmanager
    def _timed(self, owner: Any, name: str, part: str, times: dict[str, float]) -> Iterator[None]:
        """Add to ``times`` what a method takes, until the GPU has finished it."""
        before = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self._wait()
            started = time.perf_counter()
            result = before(*arguments, **named)
            self._wait()
            times[part] += time.perf_counter() - started
            return result

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, before)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class Diffusers(_Pipeline):
    """diffusers' pipeline as its documentation says to make it fast: SDPA, channels-last; float16 on a GPU."""

    packages: tuple[str, ...] = ("diffusers", "transformers", "torch", "accelerate", "safetensors")
    half_on_gpu = True

    def __init__(self, work: Work) -> None:
        import torch

        from koala_export.checkpoint import FolderCheckpoint
        from koala_export.source import open_source
        from koala_verify.reference import open_diffusers

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device == "cuda" and self.half_on_gpu else torch.float32
        manifest = read_manifest(Path(work.bundle))
        checkpoint = open_source(work.source, random_weights=False, precision=manifest.profile.precision)
        assert isinstance(checkpoint, FolderCheckpoint)
        pipe = open_diffusers(checkpoint, manifest, dtype)
        pipe.to(device)
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
        super().__init__(work, manifest, pipe, device)


class Reference(Diffusers):
    """float32 everywhere; what pictures are compared with."""

    half_on_gpu = False


class DiffusersCompiled(Diffusers):
    """diffusers' pipeline with torch.compile of U-Net and VAE; with CUDA graphs and max-autotune on a GPU.

    It has been compiled before it is measured, as our plans have: what its start costs is with a full cache.
    """

    @staticmethod
    def prepare(work: Work) -> None:
        """Compile, so that inductor's cache has everything."""
        DiffusersCompiled(work).draw()

    def __init__(self, work: Work) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(work.scratch) / "inductor")
        super().__init__(work)
        pipe, torch = self._pipe, self._torch
        mode = "max-autotune" if self._device == "cuda" else "default"
        pipe.unet = torch.compile(pipe.unet, mode=mode, fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode, fullgraph=True)


class OptimumOnnx(_Pipeline):
    """optimum-onnx's ORTStableDiffusionXLPipeline, on ONNX files that its own exporter makes.

    It asks for older transformers than we do, so it usually has a Python of its own; nothing here needs ours.
    """

    packages: tuple[str, ...] = ("optimum-onnx", "onnxruntime", "diffusers", "transformers", "torch", "accelerate")

    @staticmethod
    def prepare(work: Work) -> None:
        """Export the checkpoint, once for all runs with this scratch folder."""
        import torch
        from diffusers import StableDiffusionXLPipeline
        from optimum.onnxruntime import ORTStableDiffusionXLPipeline

        exported = _exported(work)
        if exported.exists():
            return
        # Its exporter reads plain float32 files only, and these checkpoints have halves.
        halved = any(Path(work.source).glob("unet/*.fp16.safetensors"))
        pipe = StableDiffusionXLPipeline.from_pretrained(
            work.source, variant="fp16" if halved else None, torch_dtype=torch.float32
        )
        plain = exported.with_name("optimum-float32")
        pipe.save_pretrained(plain)
        del pipe
        unfinished = exported.with_name("optimum-unfinished")
        ORTStableDiffusionXLPipeline.from_pretrained(str(plain), export=True).save_pretrained(unfinished)
        unfinished.rename(exported)

    def __init__(self, work: Work) -> None:
        import onnxruntime
        from diffusers import EulerDiscreteScheduler
        from optimum.onnxruntime import ORTStableDiffusionXLPipeline

        manifest = read_manifest(Path(work.bundle))
        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        pipe = ORTStableDiffusionXLPipeline.from_pretrained(
            str(_exported(work)), provider=provider, add_watermarker=False
        )
        spacing = manifest.spec.scheduler.timestep_spacing
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
        super().__init__(work, manifest, pipe, "cuda" if cuda else "cpu")


def _exported(work: Work) -> Path:
    return Path(work.scratch) / "optimum"
