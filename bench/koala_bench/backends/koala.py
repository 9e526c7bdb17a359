"""koala-trt's runtime as a backend: with the engines of a target, or with plain ONNX Runtime in their place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from koala_bench.backends.base import HOST, STEPS, TEXT, VAE, Workload
from koala_bundle.targets import find_target
from koala_machine.support import installed_wheel
from koala_runtime import Pipeline
from koala_runtime.devices.cpu import CpuDevice, OrtEngine
from koala_runtime.devices.onnx_cuda import UncapturedCudaDevice
from koala_runtime.executor import Executor
from koala_runtime.selection import EngineSet
from koala_verify.pixels import Pixels

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class Koala:
    """The runtime with the bundle's engines for ``target``."""

    packages: tuple[str, ...] = ("koala-trt",)

    def __init__(self, workload: Workload, target: str) -> None:
        self._start(workload, Pipeline(workload.bundle, target))
        if wheel := installed_wheel(find_target(target, simulated=True)):
            self.packages = ("koala-trt", wheel.package, *(["cuda-bindings"] if wheel.cuda else []))

    def _start(self, workload: Workload, pipe: Pipeline) -> None:
        self._workload, self._pipe = workload, pipe
        self._prompts = [workload.prompt] * pipe.manifest.profile.batch

    def draw(self) -> Pixels:
        """Return the pictures."""
        return np.stack([np.asarray(image) for image in self._pipe(self._prompts, **self._arguments()).images])

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase."""
        started = time.perf_counter()
        timings = self._pipe(self._prompts, timings=True, **self._arguments()).timings or {}
        total = time.perf_counter() - started
        measured = {
            TEXT: sum(sum(timings.get(name, ())) for name in ("text_encoder", "text_encoder_2", "prologue")),
            STEPS: sum(timings["denoiser"]),
            VAE: sum(timings["vae_decoder"]),
        }
        return {**measured, HOST: total - sum(measured.values())}

    def _arguments(self) -> dict[str, Any]:
        workload = self._workload
        return {"num_inference_steps": workload.steps, "guidance_scale": workload.guidance_scale, "seed": workload.seed}


class OnnxRuntime(Koala):
    """The bundle's ONNX files in plain ONNX Runtime, run by the same loop: shows what compiled engines add.

    With the CUDA and TensorRT providers, tensors stay on the GPU and ONNX Runtime enqueues its work on the same stream,
    but no CUDA graph is captured.
    """

    def __init__(self, workload: Workload, provider: str) -> None:
        on_gpu = provider != "cpu"
        self.packages = ("onnxruntime-gpu" if on_gpu else "onnxruntime", "tokenizers")

        def executor(engines: EngineSet, low_memory: bool) -> Executor:
            half = "float32" if engines.manifest.profile.precision == "fp32" else "float16"
            files = {entry.name: engines.path / entry.files[0] for entry in engines.manifest.components}
            device: CpuDevice | UncapturedCudaDevice = CpuDevice()
            providers: list[Any] = [PROVIDERS["cpu"]]
            if on_gpu:
                device = UncapturedCudaDevice()
                stream = {"user_compute_stream": str(device.stream)}
                chain = ("tensorrt", "cuda") if provider == "tensorrt" else ("cuda",)
                providers = [*((PROVIDERS[name], stream) for name in chain), *providers]
            memory, wait = ("cuda", device.wait) if on_gpu else ("cpu", None)
            return Executor(device, lambda name: OrtEngine(files[name], providers, memory, 0, wait), [*files], half)

        self._start(workload, Pipeline(Path(workload.bundle), "cpu", executor=executor))
