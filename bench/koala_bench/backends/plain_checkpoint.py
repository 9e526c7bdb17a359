"""A checkpoint as plain float32 files: the exporters of other projects read no others."""

from __future__ import annotations

from pathlib import Path

from koala_bench.backends.base import Workload
from koala_bundle.manifest import read_manifest


def save_plain_checkpoint(workload: Workload, folder: Path) -> Path:
    """Save the checkpoint to ``folder`` in float32, with the bundle's scheduler, and return ``folder``."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    has_fp16_files = any(Path(workload.source).glob("unet/*.fp16.safetensors"))
    pipe = StableDiffusionXLPipeline.from_pretrained(
        workload.source, variant="fp16" if has_fp16_files else None, torch_dtype=torch.float32
    )
    spacing = read_manifest(Path(workload.bundle)).spec.scheduler.timestep_spacing
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    pipe.save_pretrained(folder)
    return folder
