"""optimum-onnx as a backend."""

from __future__ import annotations

from pathlib import Path

from koala_bench.backends.base import Workload
from koala_bench.backends.diffusers import DiffusersPipeline
from koala_bench.backends.plain_checkpoint import diffusers_scheduler, save_plain_checkpoint
from koala_bundle.manifest import read_manifest


class OptimumOnnx(DiffusersPipeline):
    """optimum-onnx's ORTStableDiffusionXLPipeline on ONNX files from its own exporter.

    It requires an older transformers than koala-trt's exporter, so it usually runs in a Python environment of its own.
    """

    packages: tuple[str, ...] = ("optimum-onnx", "onnxruntime", "diffusers", "transformers", "torch", "accelerate")

    @staticmethod
    def prepare(workload: Workload) -> None:
        """Export the checkpoint, once per scratch folder."""
        from optimum.onnxruntime import ORTStableDiffusionXLPipeline

        exported = _exported(workload)
        if exported.exists():
            return
        plain = save_plain_checkpoint(workload, exported.with_name("optimum-float32"))
        unfinished = exported.with_name("optimum-unfinished")
        ORTStableDiffusionXLPipeline.from_pretrained(str(plain), export=True).save_pretrained(unfinished)
        unfinished.rename(exported)

    def __init__(self, workload: Workload) -> None:
        import onnxruntime
        from optimum.onnxruntime import ORTStableDiffusionXLPipeline

        manifest = read_manifest(Path(workload.bundle))
        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        pipe = ORTStableDiffusionXLPipeline.from_pretrained(
            str(_exported(workload)), provider=provider, add_watermarker=False
        )
        pipe.scheduler = diffusers_scheduler(manifest)
        super().__init__(workload, manifest, pipe, "cuda" if cuda else "cpu")


def _exported(workload: Workload) -> Path:
    return Path(workload.scratch) / "optimum"
