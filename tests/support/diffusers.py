"""diffusers as the reference: its own pipeline on a checkpoint, loaded as its documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_reference(checkpoint: Path) -> Any:
    """Return diffusers' StableDiffusionXLPipeline of a checkpoint, float32 on the processor, without a progress bar."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    variant = "fp16" if any((checkpoint / "unet").glob("*.fp16.safetensors")) else None
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        checkpoint, variant=variant, dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
