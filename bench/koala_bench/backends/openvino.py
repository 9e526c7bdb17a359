"""OpenVINO GenAI as a backend."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koala_bench.backends.base import HOST, STEPS, TEXT, VAE, Workload
from koala_bench.backends.plain_checkpoint import save_plain_checkpoint
from koala_bundle.manifest import read_manifest
from koala_runtime.noise import randn
from koala_verify.pixels import Pixels


class OpenVinoGenAI:
    """openvino_genai.Text2ImagePipeline on the CPU, on the files that optimum-intel's exporter makes.

    Shapes are static and computation is float32 (``INFERENCE_PRECISION_HINT``), like the cpu target's: by default
    OpenVINO computes in bfloat16 on a processor that supports it. ``prepare`` fills OpenVINO's model cache.

    The exporter requires an older transformers than koala-trt's does, so this backend usually runs in a Python
    environment of its own. Drawing needs neither torch nor transformers. OpenVINO GenAI truncates pixels to 8 bits
    where others round, which limits PSNR to 51 dB.
    """

    packages: tuple[str, ...] = ("openvino-genai", "openvino", "openvino-tokenizers")

    @staticmethod
    def prepare(workload: Workload) -> None:
        """Export the checkpoint, once per scratch folder, and compile it for this picture size."""
        exported = _exported(workload)
        if not exported.exists():
            from optimum.exporters.openvino import main_export
            from optimum.intel import OVConfig

            plain = save_plain_checkpoint(workload, exported.with_name("openvino-float32"))
            unfinished = exported.with_name("openvino-unfinished")
            # Without a dtype, models of more than a billion parameters are quantized to int8.
            precision = OVConfig(dtype="fp32")
            main_export(str(plain), unfinished, task="text-to-image", ov_config=precision, convert_tokenizer=True)
            unfinished.rename(exported)
        OpenVinoGenAI(workload).draw()

    def __init__(self, workload: Workload) -> None:
        from openvino_genai import Text2ImagePipeline

        manifest = read_manifest(Path(workload.bundle))
        profile = manifest.profile
        self._workload = workload
        self._size = {"height": profile.height, "width": profile.width, "num_images_per_prompt": profile.batch}
        factor = manifest.spec.vae.scale_factor
        latents_shape = (
            profile.batch,
            manifest.spec.unet.in_channels,
            profile.height // factor,
            profile.width // factor,
        )
        self._noise = _noise_generator(randn(latents_shape, workload.seed))
        self._pipe = Text2ImagePipeline(str(_exported(workload)))
        self._pipe.reshape(profile.batch, profile.height, profile.width, workload.guidance_scale)
        cache = str(Path(workload.scratch) / "openvino-cache")
        self._pipe.compile("CPU", INFERENCE_PRECISION_HINT="f32", CACHE_DIR=cache)

    def draw(self) -> Pixels:
        """Return the pictures."""
        workload = self._workload
        images = self._pipe.generate(
            workload.prompt,
            num_inference_steps=workload.steps,
            guidance_scale=workload.guidance_scale,
            generator=self._noise,
            **self._size,
        )
        return np.array(images.data)

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase, from OpenVINO GenAI's own metrics."""
        started = time.perf_counter()
        self.draw()
        total = time.perf_counter() - started
        metrics = self._pipe.get_performance_metrics()
        measured = {
            TEXT: sum(metrics.get_text_encoder_infer_duration().values()) / 1e3,
            STEPS: sum(metrics.raw_metrics.unet_inference_durations) / 1e6,
            VAE: metrics.get_vae_decoder_infer_duration() / 1e3,
        }
        return {**measured, HOST: max(0.0, total - sum(measured.values()))}


def _noise_generator(noise: NDArray[np.float32]) -> Any:
    """Return a generator that hands out ``noise``, so that every backend starts from the same latents."""
    import openvino
    import openvino_genai

    class NoiseGenerator(openvino_genai.Generator):  # type: ignore[misc]
        def randn_tensor(self, shape: Any) -> Any:
            if tuple(int(length) for length in shape) != noise.shape:
                raise ValueError(f"OpenVINO GenAI asks for noise of shape {shape}, not {noise.shape}")
            return openvino.Tensor(noise)

    return NoiseGenerator()


def _exported(workload: Workload) -> Path:
    return Path(workload.scratch) / "openvino"
