"""``koala build``: export and engines in one go."""

from __future__ import annotations

from koala_cli.commands.engines import build_for_targets
from koala_cli.commands.export import write_components
from koala_cli.options import (
    Base,
    Batch,
    BuildTargets,
    Bundle,
    Cfg,
    ClipSkip,
    ComputeCapabilities,
    DefaultGuidance,
    DefaultSteps,
    Device,
    Embeddings,
    Gate,
    GuidanceRescale,
    Height,
    Loras,
    OptimizationLevel,
    OtherVAE,
    Precision,
    PreviewDecoder,
    PromptChunks,
    RandomWeights,
    Source,
    Strict,
    TimestepSpacing,
    Width,
    WithEncoder,
    Without,
)


def build(
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
    target: BuildTargets = None,
    compute_capability: ComputeCapabilities = None,
    optimization_level: OptimizationLevel = None,
    strict: Strict = False,
    device: Device = None,
) -> None:
    """Export a checkpoint and build its engines.

    The same as koala export, then koala engines. Each part is skipped if it is up to date, and resumes if it was
    interrupted.
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
    build_for_targets(bundle, target, compute_capability, optimization_level, strict, device=device)
