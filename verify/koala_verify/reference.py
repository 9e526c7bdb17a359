"""The checkpoint of a bundle, and diffusers' own pipeline on it, with the bundle's timestep spacing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_export.checkpoint import MODELS, TOKENIZER_OF, FolderCheckpoint
from koala_export.source import open_source
from koala_verify.pixels import Pixels


def open_checkpoint(source: str, manifest: Manifest, embeddings: Sequence[Path] = ()) -> FolderCheckpoint:
    """Return the checkpoint ``source``. Raises ArgumentError unless its digest is the one in the manifest."""
    precision = manifest.profile.precision
    checkpoint = open_source(source, random_weights=False, precision=precision, embeddings=embeddings)
    if not isinstance(checkpoint, FolderCheckpoint) or checkpoint.digest() != manifest.origin.checkpoint:
        raise ArgumentError(
            "source",
            expected="the checkpoint that the bundle was made from",
            found="another one",
            fix="pass the folder or hub name, and the embeddings, that `koala export` was given",
        )
    return checkpoint


def open_diffusers(checkpoint: FolderCheckpoint, manifest: Manifest, dtype: Any) -> Any:
    """Return a StableDiffusionXLPipeline in ``dtype`` on the CPU."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    models = {name: checkpoint.load(name, dtype) for name in MODELS}
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(checkpoint.folder, add_watermarker=False, **models)
    pipe.set_progress_bar_config(disable=True)
    for word in checkpoint.words:
        parts = {"tokenizer": getattr(pipe, TOKENIZER_OF[word.encoder]), "text_encoder": getattr(pipe, word.encoder)}
        pipe.load_textual_inversion(word.vectors, token=word.text, **parts)
    spacing = manifest.spec.scheduler.timestep_spacing
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    return pipe


def draw_reference(checkpoint: FolderCheckpoint, manifest: Manifest, cases: Sequence[tuple[str, int]]) -> list[Pixels]:
    """Draw the picture of each prompt and seed, one at a time, in float32 with the bundle's steps and guidance."""
    import torch

    pipe = open_diffusers(checkpoint, manifest, torch.float32)
    profile, sampling = manifest.profile, manifest.sampling
    pictures = []
    for prompt, seed in cases:
        image = pipe(
            **conditioning(pipe, prompt, manifest),
            height=profile.height,
            width=profile.width,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        pictures.append(np.asarray(image))
    return pictures


def conditioning(pipe: Any, prompt: str, manifest: Manifest) -> dict[str, Any]:
    """Return what diffusers' pipeline is given, so that it attends to as many chunks of text as the bundle does.

    The prompt is the first chunk, at most 77 tokens, and the others are empty.
    """
    import torch

    profile = manifest.profile
    if profile.prompt_chunks == 1:
        return {"prompt": prompt, "clip_skip": profile.clip_skip}
    with torch.no_grad():
        first, empty = (pipe.encode_prompt(text, clip_skip=profile.clip_skip) for text in (prompt, ""))
    states, negative = (
        torch.cat([chunk, *[rest] * (profile.prompt_chunks - 1)], dim=1)
        for chunk, rest in zip(first[:2], empty[:2], strict=True)
    )
    return {
        "prompt_embeds": states,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": first[2],
        "negative_pooled_prompt_embeds": first[3],
    }
