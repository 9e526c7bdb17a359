"""``koala export``: the first half of ``koala build``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from koala_cli.extras import quiet_libraries, require_packages
from koala_cli.options import (
    Base,
    Batch,
    Bundle,
    Cfg,
    ClipSkip,
    DefaultGuidance,
    DefaultSteps,
    Embeddings,
    Gate,
    GuidanceRescale,
    Height,
    Loras,
    OtherVAE,
    Precision,
    PreviewDecoder,
    PromptChunks,
    RandomWeights,
    Source,
    TimestepSpacing,
    Width,
    WithEncoder,
    Without,
)
from koala_cli.screen import reported_lines, say


def export(
    source: Source,
    bundle: Bundle,
    height: Height = None,
    width: Width = None,
    batch: Batch = 1,
    precision: Precision = "fp16",
    cfg: Cfg = None,
    steps: DefaultSteps = None,
    guidance_scale: DefaultGuidance = None,
    timestep_spacing: TimestepSpacing = None,
    random_weights: RandomWeights = False,
    gate: Gate = True,
    without: Without = None,
    prompt_chunks: PromptChunks = 1,
    clip_skip: ClipSkip = 0,
    guidance_rescale: GuidanceRescale = False,
    encoder: WithEncoder = False,
    embedding: Embeddings = None,
    lora: Loras = None,
    vae: OtherVAE = None,
    preview_decoder: PreviewDecoder = None,
    base: Base = None,
) -> None:
    """Export a diffusers checkpoint to a bundle of ONNX components.

    Does nothing if the bundle is up to date. Steps, guidance and spacing default to what the model card recommends
    (presets and their hub names) or to the checkpoint's own files.
    """
    write_components(
        source,
        bundle,
        base,
        height=height,
        width=width,
        batch=batch,
        precision=precision,
        cfg=cfg,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        timestep_spacing=timestep_spacing,
        random_weights=random_weights,
        gate=gate,
        without=tuple(without or ()),
        prompt_chunks=prompt_chunks,
        clip_skip=clip_skip,
        guidance_rescale=guidance_rescale,
        encoder=encoder,
        embeddings=tuple(embedding or ()),
        loras=tuple(lora or ()),
        vae=vae,
        preview_decoder=preview_decoder,
    )


def write_components(source: str, bundle: Path, base: Path | None, **options: Any) -> None:
    """Export with ``options``, the fields of ExportOptions, and print what was done."""
    require_packages(("torch", "diffusers", "transformers", "onnx", "onnxscript"), "export")
    require_packages(("onnxruntime",), "cpu")
    from koala_export.exporter import export_bundle
    from koala_export.options import ExportOptions

    quiet_libraries()
    with reported_lines() as report:
        written = export_bundle(source, bundle, ExportOptions(**options), report, base)
    say(f"{bundle}: {'exported' if written else 'up to date (same checkpoint, options and versions)'}")
