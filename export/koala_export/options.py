"""Options of an export, and what they come to for a checkpoint: specification, profile and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_bundle.scheduler_keys import TIMESTEP_SPACINGS
from koala_bundle.spec import PASS_NAMES, ModelSpec, Profile, Sampling, check_profile, check_sampling
from koala_export.checkpoint import Checkpoint
from koala_export.configs import check_scheduler, native_size, read_spec
from koala_export.other_models import check_encoder, source_of

# diffusers' own defaults of StableDiffusionXLPipeline.__call__, for a checkpoint that recommends nothing.
DIFFUSERS_DEFAULTS = Sampling(num_inference_steps=50, guidance_scale=5.0)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. None: as the model card or the checkpoint says.

    ``without`` names passes to leave out, ``embeddings`` are files with learned words, ``loras`` files to add
    to the weights, each as ``FILE[:SCALE]``. ``vae`` is the folder or hub name of a VAE to take instead of the
    checkpoint's, ``preview_decoder`` of one that decodes previews.
    """

    height: int | None = None
    width: int | None = None
    batch: int = 1
    precision: str = "fp16"
    cfg: bool | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    timestep_spacing: str | None = None
    random_weights: bool = False
    gate: bool = True
    without: tuple[str, ...] = ()
    prompt_chunks: int = 1
    clip_skip: int = 0
    guidance_rescale: bool = False
    encoder: bool = False
    embeddings: tuple[Path, ...] = ()
    loras: tuple[str, ...] = ()
    vae: str | None = None
    preview_decoder: str | None = None


def options_of(manifest: Manifest) -> ExportOptions:
    """Return the options that export a bundle like this one again, but for files with learned words and LoRAs."""
    profile, sampling = manifest.profile, manifest.sampling
    return ExportOptions(
        height=profile.height,
        width=profile.width,
        batch=profile.batch,
        precision=profile.precision,
        cfg=profile.cfg,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        timestep_spacing=manifest.spec.scheduler.config.get("timestep_spacing"),
        gate=manifest.gate == "passed",
        without=tuple(name for name in PASS_NAMES if name not in manifest.passes),
        prompt_chunks=profile.prompt_chunks,
        clip_skip=profile.clip_skip,
        guidance_rescale=profile.guidance_rescale,
        encoder=profile.encoder,
        vae=source_of(manifest.origin.vae),
        preview_decoder=source_of(manifest.origin.preview_decoder),
    )


def resolve(checkpoint: Checkpoint, options: ExportOptions) -> tuple[ModelSpec, Profile, Sampling]:
    """Resolve the options: what is given, else what the model card says, else the checkpoint's own files.

    Raises ArgumentError for what does not fit together, CheckpointError for a checkpoint of another shape.
    """
    spec = read_spec(checkpoint.configs)
    preset = checkpoint.preset
    spacing = options.timestep_spacing or (preset.timestep_spacing if preset else None)
    if spacing not in (None, *TIMESTEP_SPACINGS):
        raise ArgumentError(
            "timestep_spacing",
            expected=" or ".join(TIMESTEP_SPACINGS),
            found=repr(spacing),
            fix="pass trailing for KOALA-Lightning, leading for KOALA",
        )
    if spacing is not None:
        config = {**spec.scheduler.config, "timestep_spacing": spacing}
        spec = replace(spec, scheduler=check_scheduler(replace(spec.scheduler, config=config)))
    default = Sampling(preset.num_inference_steps, preset.guidance_scale) if preset else DIFFUSERS_DEFAULTS
    guidance = default.guidance_scale if options.guidance_scale is None else options.guidance_scale
    steps = default.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
    check_sampling(steps, spec.scheduler["num_train_timesteps"], guidance)
    cfg = guidance > 1 if options.cfg is None else options.cfg
    if not cfg and options.guidance_scale is not None and guidance > 1:
        raise ArgumentError(
            "guidance_scale",
            expected="1 or less where no guidance is compiled in",
            found=f"{guidance:g}",
            fix="leave the guidance out, or compile guidance in",
        )
    own = native_size(checkpoint.configs, spec)
    given = (options.height, options.width)
    height, width = (side if chosen is None else chosen for side, chosen in zip(own, given, strict=True))
    profile = Profile(
        height,
        width,
        options.batch,
        options.precision,
        cfg,
        options.prompt_chunks,
        options.clip_skip,
        options.guidance_rescale,
        options.encoder,
        options.preview_decoder is not None,
    )
    check_profile(profile, spec)
    check_encoder(checkpoint, profile)
    _check_clip_skip(checkpoint, profile.clip_skip)
    return spec, profile, Sampling(steps, guidance if cfg else min(guidance, 1.0))


def _check_clip_skip(checkpoint: Checkpoint, clip_skip: int) -> None:
    """Refuse to skip more layers than the shorter text encoder has before its last but one."""
    # 12: transformers' default of CLIPTextConfig.
    layers = [int(checkpoint.configs[name].get("num_hidden_layers", 12)) for name in ("text_encoder", "text_encoder_2")]
    if not 0 <= clip_skip < min(layers):
        raise ArgumentError(
            "clip_skip",
            expected=f"0 to {min(layers) - 1}, the layers before the last of the shorter text encoder",
            found=str(clip_skip),
            fix="pass 1 or 2, or leave it out",
        )


def choose_passes(without: Sequence[str]) -> tuple[str, ...]:
    """Return the passes that run. Raises ArgumentError for an unknown name in ``without``."""
    for name in without:
        if name not in PASS_NAMES:
            raise ArgumentError("without", expected=" or ".join(PASS_NAMES), found=repr(name), fix="pass one of these")
    return tuple(name for name in PASS_NAMES if name not in without)
