"""diffusers' own pipeline on the checkpoint of a bundle, with the bundle's timestep spacing."""

from __future__ import annotations

from typing import Any

from koala_bundle.manifest import Manifest
from koala_export.checkpoint import MODELS, FolderCheckpoint


def open_diffusers(checkpoint: FolderCheckpoint, manifest: Manifest, dtype: Any) -> Any:
    """Return a StableDiffusionXLPipeline in ``dtype`` on the processor."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    models = {name: checkpoint.load(name, dtype) for name in MODELS}
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(checkpoint.folder, add_watermarker=False, **models)
    pipe.set_progress_bar_config(disable=True)
    spacing = manifest.spec.scheduler.timestep_spacing
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    return pipe
