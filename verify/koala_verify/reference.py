"""The checkpoint of a bundle, and the pipeline that diffusers alone loads of it, with the bundle's timestep spacing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import ArgumentError, CheckpointError, first_line
from koala_bundle.manifest import LoraEntry, Manifest
from koala_export.checkpoint import TOKENIZER_OF, Checkpoint, FolderCheckpoint
from koala_export.learned_words import LearnedWord
from koala_export.lora import Lora
from koala_export.other_models import open_recorded, with_others
from koala_export.source import open_source
from koala_verify.lora_reference import add_lora
from koala_verify.pixels import Pixels

VARIANTS: dict[str, tuple[str | None, ...]] = {"fp16": ("fp16", None, "bf16"), "fp32": (None, "fp16", "bf16")}
"""Variants in the order in which a user of diffusers would try them for weights of a precision."""


def open_checkpoint(
    source: str, manifest: Manifest, embeddings: Sequence[Path] = (), loras: Sequence[str] = ()
) -> FolderCheckpoint:
    """Return the checkpoint ``source`` with its LoRAs. Raises ArgumentError unless both are those of the manifest."""
    precision = manifest.profile.precision
    checkpoint = open_source(source, random_weights=False, precision=precision, embeddings=embeddings, loras=loras)
    check_loras(manifest, checkpoint.loras)
    if not isinstance(checkpoint, FolderCheckpoint) or checkpoint.digest() != manifest.origin.checkpoint:
        raise ArgumentError(
            "source",
            expected="the checkpoint that the bundle was made from",
            found="another one",
            fix="pass the folder or hub name, and the embeddings, that `koala export` was given",
        )
    return checkpoint


def check_loras(manifest: Manifest, loras: Sequence[Lora]) -> None:
    """Raise ArgumentError unless these are the files and scales that a bundle was made with."""
    given = tuple(lora.entry for lora in loras)
    if given != manifest.origin.loras:
        raise ArgumentError(
            "loras",
            expected=f"those that the bundle was made with: {_listed(manifest.origin.loras)}",
            found=_listed(given),
            fix="pass the same files with the same scales, in the same order",
        )


def _listed(loras: Sequence[LoraEntry]) -> str:
    return ", ".join(f"{lora} (SHA-256 {lora.sha256[:8]}...)" for lora in loras) or "none"


def open_models(checkpoint: FolderCheckpoint, manifest: Manifest) -> Checkpoint:
    """Return the checkpoint with the VAE and the preview decoder that the manifest names. Raises ArgumentError."""
    return with_others(checkpoint, open_recorded(manifest.origin, manifest.profile.precision))


def open_diffusers(
    folder: Path, manifest: Manifest, dtype: Any, words: Sequence[LearnedWord] = (), loras: Sequence[Lora] = ()
) -> Any:
    """Return the pipeline that diffusers makes of ``folder``, learned words and LoRAs, in ``dtype`` on the CPU.

    Classes, configurations, files and tokenizers are found by diffusers itself, nothing by the exporter. Only the
    timestep spacing is the bundle's, which may come from a model card. Raises CheckpointError if diffusers refuses.
    """
    from diffusers import DiffusionPipeline

    refused, other = [], other_vae(manifest, dtype)
    for variant in VARIANTS[manifest.profile.precision]:
        try:
            pipe: Any = DiffusionPipeline.from_pretrained(
                folder, add_watermarker=False, **_how(variant, dtype), **other
            )
        except Exception as error:  # diffusers raises many kinds; another variant may be there
            refused.append(error)
            continue
        pipe.set_progress_bar_config(disable=True)
        for word in words:
            tokenizer, encoder = getattr(pipe, TOKENIZER_OF[word.encoder]), getattr(pipe, word.encoder)
            pipe.load_textual_inversion(word.vectors, token=word.text, tokenizer=tokenizer, text_encoder=encoder)
        for lora in loras:
            add_lora(pipe, lora)
        own = pipe.scheduler.config
        spacing = manifest.spec.scheduler.config.get("timestep_spacing", own.get("timestep_spacing"))
        pipe.scheduler = type(pipe.scheduler).from_config(own, timestep_spacing=spacing)
        return pipe
    raise CheckpointError(
        str(folder),
        expected="a checkpoint that diffusers loads, which is the reference",
        found=f"a refusal ({first_line(refused[0]).rstrip('.')})",
        fix="save the checkpoint again with diffusers' save_pretrained",
    ) from refused[0]


def _how(variant: str | None, dtype: Any) -> dict[str, Any]:
    return {"variant": variant, "dtype": dtype, "use_safetensors": True, "local_files_only": True}


def other_vae(manifest: Manifest, dtype: Any) -> dict[str, Any]:
    """Return the VAE that the bundle has instead of the checkpoint's, as diffusers loads it, by its argument."""
    import diffusers

    if manifest.origin.vae is None:
        return {}
    vae = open_recorded(manifest.origin, manifest.profile.precision)["vae"]
    return {"vae": getattr(diffusers, vae.class_name).from_pretrained(vae.folder, **_how(vae.weights.variant, dtype))}


def draw_reference(checkpoint: FolderCheckpoint, manifest: Manifest, cases: Sequence[tuple[str, int]]) -> list[Pixels]:
    """Draw the picture of each prompt and seed, one at a time, in float32 with the bundle's steps and guidance."""
    import torch

    pipe = open_diffusers(checkpoint.folder, manifest, torch.float32, checkpoint.words, checkpoint.loras)
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
