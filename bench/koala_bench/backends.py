"""What is measured: each backend draws the same picture with the same checkpoint, as fast as it can.

A backend is a class that takes a ``Work``; it is made and used in a process of its own (``worker``). Others than these
can be named as ``module:Class``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from koala_runtime.contract.manifest import TARGETS, engine_folder, read_manifest

Pixels = NDArray[np.uint8]
TEXT, STEPS, VAE, HOST = PARTS = ("text", "steps", "vae", "host")
"""Where the time of a picture goes; ``host`` is all the rest, copies among it."""


@dataclass(frozen=True)
class Work:
    """One picture, the same for all: sizes and precision are the bundle's."""

    bundle: str
    source: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float


REFERENCE = "reference"
"""diffusers in float32 on the processor, what pictures are compared with."""


class Backend(Protocol):
    """Loads when it is made. ``packages`` are what has to be installed for it, by distribution name."""

    packages: tuple[str, ...]

    def draw(self) -> Pixels:
        """Return the picture, uint8 [height, width, 3], finished."""

    def parts(self) -> dict[str, float]:
        """Draw once more and return the seconds of each of PARTS."""

    def device_bytes(self) -> int | None:
        """Most memory of a GPU that was in use, None where there is none."""


class Koala:
    """Our runtime with the plans of a target."""

    packages: tuple[str, ...] = ("koala-trt",)

    def __init__(self, work: Work, target: str, *, low_memory: bool = False) -> None:
        from koala_runtime import Pipeline

        self._work, self._pipe = work, Pipeline(work.bundle, target, low_memory=low_memory)
        self._free = self._pipe._executor.device.free_bytes()

    def draw(self) -> Pixels:
        """Return the picture."""
        return np.asarray(self._pipe(self._work.prompt, **self._arguments()).images[0])

    def parts(self) -> dict[str, float]:
        """Return the seconds of each of PARTS."""
        started = time.perf_counter()
        timings = self._pipe(self._work.prompt, timings=True, **self._arguments()).timings or {}
        whole = time.perf_counter() - started
        known = {
            TEXT: sum(sum(timings.get(name, ())) for name in ("text_encoder", "text_encoder_2", "prologue")),
            STEPS: sum(timings["denoiser"]),
            VAE: sum(timings["vae_decoder"]),
        }
        return {**known, HOST: whole - sum(known.values())}

    def device_bytes(self) -> int | None:
        """Return the most GPU memory."""
        return None if self._free is None else self._pipe.budget.total()

    def _arguments(self) -> dict[str, Any]:
        work = self._work
        return {"num_inference_steps": work.steps, "guidance_scale": work.guidance_scale, "seed": work.seed}


class Diffusers:
    """diffusers' pipeline as its documentation says to make it fast: SDPA, channels-last; float16 on a GPU."""

    packages: tuple[str, ...] = ("diffusers", "transformers", "torch", "accelerate", "safetensors")

    def __init__(self, work: Work, *, compiled: bool = False, half: bool = True) -> None:
        import torch

        from koala_bench.reference import open_diffusers
        from koala_export.checkpoint import FolderCheckpoint
        from koala_export.source import open_source

        self._work, self._torch = work, torch
        self._device = "cuda" if torch.cuda.is_available() and half else "cpu"
        dtype = torch.float16 if self._device == "cuda" else torch.float32
        manifest = read_manifest(Path(work.bundle))
        self._size = {"height": manifest.profile.height, "width": manifest.profile.width}
        checkpoint = open_source(work.source, random_weights=False, precision=manifest.profile.precision)
        assert isinstance(checkpoint, FolderCheckpoint)
        pipe = open_diffusers(checkpoint, manifest, dtype)
        pipe.to(self._device)
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
        if compiled:
            mode = "max-autotune" if self._device == "cuda" else "default"
            pipe.unet = torch.compile(pipe.unet, mode=mode, fullgraph=True)
            pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode, fullgraph=True)
        self._pipe = pipe

    def draw(self) -> Pixels:
        """Return the picture."""
        work = self._work
        generator = self._torch.Generator().manual_seed(work.seed)
        image = self._pipe(
            work.prompt,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale,
            generator=generator,
            **self._size,
        ).images[0]
        return np.asarray(image)

    def parts(self) -> dict[str, float]:
        """Return the seconds of each of PARTS."""
        times = dict.fromkeys((TEXT, STEPS, VAE), 0.0)
        pipe = self._pipe
        with (
            self._timed(pipe, "encode_prompt", TEXT, times),
            self._timed(pipe.unet, "forward", STEPS, times),
            self._timed(pipe.vae, "decode", VAE, times),
        ):
            started = time.perf_counter()
            self.draw()
            whole = time.perf_counter() - started
        return {**times, HOST: whole - sum(times.values())}

    def device_bytes(self) -> int | None:
        """Return the most GPU memory."""
        return int(self._torch.cuda.max_memory_reserved()) if self._device == "cuda" else None

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


class OnnxRuntime(Koala):
    """The bundle's ONNX files in ONNX Runtime as they are, in our loop: what the cpu target's own plans bring."""

    packages: tuple[str, ...] = ("onnxruntime", "tokenizers")

    def __init__(self, work: Work) -> None:
        from koala_runtime.executor import Executor
        from koala_runtime.host import HostDevice, OrtPlan

        super().__init__(work, "cpu", low_memory=True)  # so that it loads no plans, which are not its own
        self._pipe._executor.close()
        manifest, bundle = self._pipe.manifest, Path(work.bundle)
        half = "float32" if manifest.profile.precision == "fp32" else "float16"
        files = {entry.name: bundle / entry.files[0] for entry in manifest.components}
        self._pipe._executor = Executor(HostDevice(), lambda name: OrtPlan(files[name]), [*files], half)


def make(name: str, work: Work) -> Backend:
    """Return a backend, loaded."""
    if name.startswith("koala:"):
        return Koala(work, name.removeprefix("koala:"))
    if ":" in name:
        module, _, cls = name.partition(":")
        made: Backend = getattr(importlib.import_module(module), cls)(work)
        return made
    if name == "onnxruntime":
        return OnnxRuntime(work)
    return Diffusers(work, compiled=name == "diffusers-compile", half=name != REFERENCE)


def available(bundle: Path) -> dict[str, str | None]:
    """Return every backend by name with None, or in words why it cannot be measured here."""
    told: dict[str, str | None] = dict.fromkeys(("diffusers", "diffusers-compile", "onnxruntime"))
    for target in TARGETS:
        told[f"koala:{target}"] = _obstacle(bundle, target)
    return told


def _obstacle(bundle: Path, target: str) -> str | None:
    from koala_runtime.bundle import obstacle

    if problem := obstacle(target):
        return problem
    return None if engine_folder(bundle, target).is_dir() else "the bundle has no engines for it"
