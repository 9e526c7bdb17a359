"""Our runtime as a backend: with the plans of a target, and with ONNX Runtime in their place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from koala_bench.backends import HOST, PROVIDERS, STEPS, TEXT, VAE, Work
from koala_bundle.targets import find_target
from koala_runtime import Pipeline
from koala_runtime.devices.base import HostGraphs
from koala_runtime.devices.cpu import CpuDevice, OrtEngine
from koala_runtime.devices.cuda import CudaDevice
from koala_runtime.executor import Executor
from koala_runtime.selection import EngineSet
from koala_verify.pixels import Pixels


class Koala:
    """The runtime with the plans of a target."""

    packages: tuple[str, ...] = ("koala-trt",)

    def __init__(self, work: Work, target: str) -> None:
        self._start(work, Pipeline(work.bundle, target))
        if find_target(target, simulated=True).needs_gpu:
            self.packages = ("koala-trt", "cuda-bindings", {"rtx": "tensorrt-rtx-cu13"}.get(target, target))

    def _start(self, work: Work, pipe: Pipeline) -> None:
        self._work, self._pipe = work, pipe
        self._prompts = [work.prompt] * pipe.manifest.profile.batch

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

    def __init__(self, work: Work, provider: str) -> None:
        on_gpu = provider != "cpu"
        self.packages = ("onnxruntime-gpu" if on_gpu else "onnxruntime", "tokenizers")

        def executor(engines: EngineSet, low_memory: bool) -> Executor:
            half = "float32" if engines.manifest.profile.precision == "fp32" else "float16"
            files = {entry.name: engines.path / entry.files[0] for entry in engines.manifest.components}
            device: CpuDevice | CudaDevice = CpuDevice()
            providers: list[Any] = [PROVIDERS["cpu"]]
            if on_gpu:
                device = _Uncaptured()
                stream = {"user_compute_stream": str(device.stream)}
                chain = ("tensorrt", "cuda") if provider == "tensorrt" else ("cuda",)
                providers = [*((PROVIDERS[name], stream) for name in chain), *providers]
            memory = "cuda" if on_gpu else "cpu"
            return Executor(device, lambda name: OrtEngine(files[name], providers, memory), [*files], half)

        self._start(work, Pipeline(Path(work.bundle), "cpu", executor=executor))


class _Uncaptured(HostGraphs, CudaDevice):
    """A GPU on which a graph is the list of its work."""
