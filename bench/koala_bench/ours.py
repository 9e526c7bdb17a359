"""Our runtime as a backend: with the plans of a target, and with ONNX Runtime in their place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koala_bench.backends import HOST, PROVIDERS, STEPS, TEXT, VAE, Pixels, Work
from koala_runtime.devices.cuda import CudaDevice
from koala_runtime.devices.base import Graph, Enqueue


class Koala:
    """The runtime with the plans of a target."""

    packages: tuple[str, ...] = ("koala-trt",)

    def __init__(self, work: Work, target: str, *, low_memory: bool = False) -> None:
        from koala_runtime import Pipeline

        self._work, self._pipe = work, Pipeline(work.bundle, target, low_memory=low_memory)
        self._prompts = [work.prompt] * self._pipe.manifest.profile.batch
        if target in ("rtx", "tensorrt"):
            self.packages = ("koala-trt", "cuda-bindings", {"rtx": "tensorrt-rtx-cu13"}.get(target, target))

    def draw(self) -> Pixels:
        """Return the pictures."""
        return np.stack([np.asarray(image) for image in self._pipe(self._prompts, **self._arguments()).images])

    def parts(self) -> dict[str, float]:
        """Return the seconds of each of PARTS."""
        started = time.perf_counter()
        timings = self._pipe(self._prompts, timings=True, **self._arguments()).timings or {}
        whole = time.perf_counter() - started
        known = {
            TEXT: sum(sum(timings.get(name, ())) for name in ("text_encoder", "text_encoder_2", "prologue")),
            STEPS: sum(timings["denoiser"]),
            VAE: sum(timings["vae_decoder"]),
        }
        return {**known, HOST: whole - sum(known.values())}

    def _arguments(self) -> dict[str, Any]:
        work = self._work
        return {"num_inference_steps": work.steps, "guidance_scale": work.guidance_scale, "seed": work.seed}


class OnnxRuntime(Koala):
    """The bundle's ONNX files in ONNX Runtime as they are, in our loop: what our own plans bring over that.

    With the CUDA and TensorRT providers tensors stay on the GPU, and ONNX Runtime's work is enqueued on our stream, but
    not captured.
    """

    packages: tuple[str, ...] = ("onnxruntime", "tokenizers")

    def __init__(self, work: Work, provider: str) -> None:
        from koala_runtime.executor import Executor
        from koala_runtime.devices.cpu import CpuDevice, OrtEngine

        super().__init__(work, "cpu", low_memory=True)  # so that it loads no plans, which are not its own
        self._pipe._executor.close()
        manifest, bundle = self._pipe.manifest, Path(work.bundle)
        half = "float32" if manifest.profile.precision == "fp32" else "float16"
        files = {entry.name: bundle / entry.files[0] for entry in manifest.components}
        device: CpuDevice | CudaDevice = CpuDevice()
        providers: list[Any] = [PROVIDERS["cpu"]]
        if provider != "cpu":
            self.packages = ("onnxruntime-gpu", "tokenizers")
            device = _Uncaptured()
            stream = {"user_compute_stream": str(device.stream)}
            chain = ("tensorrt", "cuda") if provider == "tensorrt" else ("cuda",)
            providers = [*((PROVIDERS[name], stream) for name in chain), *providers]
        memory = "cpu" if provider == "cpu" else "cuda"

        def load(name: str) -> OrtEngine:
            return OrtEngine(files[name], providers, memory)

        self._pipe._executor = Executor(device, load, [*files], half)


class _Uncaptured(CudaDevice):
    """A GPU on which a graph is the list of its stages."""

    def capture(self, stages: Sequence[Enqueue]) -> Graph:
        """Return the stages."""
        return tuple(stages)

    def launch(self, graph: Graph) -> None:
        """Run the stages."""
        for stage in graph:
            stage()

    def drop(self, graph: Graph) -> None:
        """Nothing to do."""
