"""A checkpoint as plain float32 files: the exporters of other projects read no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from koala_bench.backends.base import Workload
from koala_bundle.manifest import Manifest, read_manifest


def save_plain_checkpoint(workload: Workload, folder: Path) -> Path:
    """Save the checkpoint to ``folder`` in float32, with the bundle's scheduler, and return ``folder``."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    has_fp16_files = any(Path(workload.source).glob("unet/*.fp16.safetensors"))
    pipe = StableDiffusionXLPipeline.from_pretrained(
        workload.source,
        variant="fp16" if has_fp16_files else None,
        torch_dtype=torch.float32,
        add_watermarker=False,
    )
    manifest = read_manifest(Path(workload.bundle))
    if manifest.origin.vae is not None:
        from koala_verify.reference import other_vae

        pipe.register_modules(**other_vae(manifest, torch.float32))
    pipe.scheduler = diffusers_scheduler(manifest)
    pipe.save_pretrained(folder)
    return folder


def diffusers_scheduler(manifest: Manifest) -> Any:
    """Return diffusers' scheduler with the class and the keys of a bundle."""
    import diffusers

    spec = manifest.spec.scheduler
    return getattr(diffusers, spec.class_name).from_config(spec.config)
