"""A checkpoint's own configuration files to a ModelSpec.

Every SDXL-shaped checkpoint (one U-Net with text and time conditioning, two CLIP text encoders, one VAE,
EulerDiscrete) gives a specification; every other one gives a CheckpointError that names the file and key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from koala_bundle.errors import CheckpointError
from koala_bundle.spec import (
    TIMESTEP_SPACINGS,
    ModelSpec,
    SchedulerSpec,
    TextEncoderSpec,
    UNetSpec,
    VAESpec,
)

Config = Mapping[str, Any]

PREDICTION_TYPES = ("epsilon", "v_prediction")
INTERPOLATION_TYPES = ("linear", "log_linear")
BETA_SCHEDULES = ("linear", "scaled_linear")
_FIX_SHAPE = "use a checkpoint of the SDXL shape, saved by diffusers"


def read_spec(configs: Mapping[str, Config]) -> ModelSpec:
    """Return the specification of a checkpoint.

    ``configs`` holds the parsed JSON of ``model_index`` and of each component's config file, keyed by folder name.
    Raises CheckpointError naming the file and key where the checkpoint is not of the SDXL shape.
    """
    index = configs["model_index"]
    _require("model_index.json", "_class_name", index.get("_class_name"), "StableDiffusionXLPipeline")
    first = _text_encoder(configs["text_encoder"], pooled=False)
    second = _text_encoder(configs["text_encoder_2"], pooled=True)
    unet = _unet(configs["unet"], first, second)
    vae = _vae(configs["vae"])
    _require("unet/config.json", "in_channels", unet.in_channels, vae.latent_channels, "the VAE's latent_channels")
    return ModelSpec(
        text_encoder=first,
        text_encoder_2=second,
        unet=unet,
        vae=vae,
        scheduler=read_scheduler(configs["scheduler"]),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def native_size(configs: Mapping[str, Config], spec: ModelSpec) -> tuple[int, int]:
    """Return the height and width in pixels that the U-Net was trained for, as diffusers takes it from sample_size."""
    size = configs["unet"].get("sample_size") or 128  # StableDiffusionXLPipeline's default_sample_size
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(
            "unet/config.json: sample_size",
            expected="the height and width of the latents",
            found=str(size),
            fix="correct the file, or delete that line and pass a height and a width",
        )
    return sides[0] * spec.vae.scale_factor, sides[1] * spec.vae.scale_factor


def read_scheduler(config: Config) -> SchedulerSpec:
    """Return the sampler's specification; raises CheckpointError unless it is a plain EulerDiscrete."""
    file = "scheduler/scheduler_config.json"
    name = config.get("_class_name")
    if name != "EulerDiscreteScheduler":
        raise CheckpointError(
            f"{file}: _class_name",
            expected="EulerDiscreteScheduler, the one sampler that can be compiled in",
            found=str(name),
            fix="save the folder with pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)",
        )
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr"):
        _require_plain(file, key, bool(config.get(key)), False)
    _require_plain(file, "trained_betas", config.get("trained_betas"), None)
    _require_plain(file, "timestep_type", config.get("timestep_type", "discrete"), "discrete")
    _require_plain(file, "final_sigmas_type", config.get("final_sigmas_type", "zero"), "zero")
    # Defaults are those of diffusers' EulerDiscreteScheduler.__init__, which save_config may leave out.
    return SchedulerSpec(
        num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
        beta_start=float(config.get("beta_start", 0.0001)),
        beta_end=float(config.get("beta_end", 0.02)),
        beta_schedule=_one_of(file, config, "beta_schedule", BETA_SCHEDULES, "linear"),
        prediction_type=_one_of(file, config, "prediction_type", PREDICTION_TYPES, "epsilon"),
        interpolation_type=_one_of(file, config, "interpolation_type", INTERPOLATION_TYPES, "linear"),
        timestep_spacing=_one_of(file, config, "timestep_spacing", TIMESTEP_SPACINGS, "linspace"),
        steps_offset=int(config.get("steps_offset", 0)),
    )


def _text_encoder(config: Config, *, pooled: bool) -> TextEncoderSpec:
    file = f"text_encoder{'_2' if pooled else ''}/config.json"
    wanted = "CLIPTextModelWithProjection" if pooled else "CLIPTextModel"
    _require(file, "architectures", (config.get("architectures") or [None])[0], wanted)
    # Defaults are those of transformers' CLIPTextConfig.
    return TextEncoderSpec(
        vocab_size=int(config.get("vocab_size", 49408)),
        hidden_size=int(config.get("hidden_size", 512)),
        sequence_length=int(config.get("max_position_embeddings", 77)),
        projection_dim=int(config.get("projection_dim", 512)) if pooled else None,
    )


def _unet(config: Config, first: TextEncoderSpec, second: TextEncoderSpec) -> UNetSpec:
    file = "unet/config.json"
    _require(file, "_class_name", config.get("_class_name"), "UNet2DConditionModel")
    _require(file, "addition_embed_type", config.get("addition_embed_type"), "text_time")
    for key in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        _require(file, key, config.get(key), None)
    _require(
        file,
        "cross_attention_dim",
        config.get("cross_attention_dim"),
        first.hidden_size + second.hidden_size,
        "the text encoders' hidden sizes together",
    )
    addition = int(config.get("addition_time_embed_dim") or 0)
    _require(
        file,
        "projection_class_embeddings_input_dim",
        config.get("projection_class_embeddings_input_dim"),
        (second.projection_dim or 0) + 6 * addition,
        "the pooled width and six embedded sizes",
    )
    return UNetSpec(
        in_channels=int(config.get("in_channels", 4)),
        block_out_channels=tuple(int(c) for c in config.get("block_out_channels", (320, 640, 1280, 1280))),
        mid_block=config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None,
        cross_attention_dim=first.hidden_size + second.hidden_size,
        addition_time_embed_dim=addition,
    )


def _vae(config: Config) -> VAESpec:
    _require("vae/config.json", "_class_name", config.get("_class_name"), "AutoencoderKL")
    return VAESpec(
        latent_channels=int(config.get("latent_channels", 4)),
        scale_factor=2 ** (len(config.get("block_out_channels", (64,))) - 1),
        scaling_factor=float(config.get("scaling_factor", 0.18215)),
        force_upcast=bool(config.get("force_upcast", True)),
    )


def _require(file: str, key: str, found: object, expected: object, why: str = "", fix: str = _FIX_SHAPE) -> None:
    if found != expected:
        raise CheckpointError(
            f"{file}: {key}",
            expected=f"{expected}{f' ({why})' if why else ''}",
            found=str(found),
            fix=fix,
        )


def _require_plain(file: str, key: str, found: object, expected: object) -> None:
    fix = f"save the folder with EulerDiscreteScheduler.from_config(pipe.scheduler.config, {key}={expected!r})"
    _require(file, key, found, expected, "the plain sampler, which is what can be compiled in", fix)


def _one_of(file: str, config: Config, key: str, allowed: tuple[str, ...], default: str) -> str:
    value = config.get(key, default)
    if value not in allowed:
        raise CheckpointError(
            f"{file}: {key}",
            expected=" or ".join(allowed),
            found=repr(value),
            fix="save the checkpoint with one of these",
        )
    return str(value)
