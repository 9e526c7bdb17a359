"""What a model is (ModelSpec, from the checkpoint's own config.json files) and how it is compiled (Profile).

Nothing here knows a model by name: every SDXL-shaped checkpoint (one U-Net with text and time conditioning, two
CLIP text encoders, one VAE, EulerDiscrete) gives a specification, and every other one gives a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from koala_runtime.contract.errors import ArgumentError, CheckpointError

Config = Mapping[str, Any]

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
INTERPOLATION_TYPES = ("linear", "log_linear")
BETA_SCHEDULES = ("linear", "scaled_linear")
PRECISIONS = ("fp16", "fp32")
_LARGEST_FLOAT32 = 3.4028235e38
_MEND_SHAPE = "use a checkpoint of the SDXL shape, saved by diffusers"
SMALLEST_SIDE = 64  # pixels; below it the noise tensor gets shorter than the blocks torch.randn draws


@dataclass(frozen=True)
class TextEncoderSpec:
    """A CLIP text encoder. ``projection_dim`` is the width of the pooled embedding, None where there is none."""

    vocab_size: int
    hidden_size: int
    sequence_length: int
    projection_dim: int | None


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser. Channels and widths only; the graph itself comes from the checkpoint."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    mid_block: bool
    cross_attention_dim: int
    addition_time_embed_dim: int


@dataclass(frozen=True)
class VAESpec:
    """The image decoder: latents are divided by ``scaling_factor`` and grow by ``scale_factor`` on each side."""

    latent_channels: int
    scale_factor: int
    scaling_factor: float
    force_upcast: bool


@dataclass(frozen=True)
class SchedulerSpec:
    """EulerDiscreteScheduler's configuration, in diffusers' words."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    prediction_type: str
    interpolation_type: str
    timestep_spacing: str
    steps_offset: int


@dataclass(frozen=True)
class ModelSpec:
    """All that the three stages share about a checkpoint."""

    text_encoder: TextEncoderSpec
    text_encoder_2: TextEncoderSpec
    unet: UNetSpec
    vae: VAESpec
    scheduler: SchedulerSpec
    force_zeros_for_empty_prompt: bool


@dataclass(frozen=True)
class Sampling:
    """Defaults of a call: what the model card recommends, or what the exporter was told."""

    num_inference_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Profile:
    """The static shape a bundle is compiled for. ``height`` and ``width`` in pixels; ``cfg``: batched guidance."""

    height: int = 1024
    width: int = 1024
    batch: int = 1
    precision: str = "fp16"
    cfg: bool = True

    @property
    def rows(self) -> int:
        """Batch of the text encoders and the U-Net: [negative, prompt] under classifier-free guidance."""
        return self.batch * (2 if self.cfg else 1)


def check_sampling(
    steps: int,
    most_steps: int,
    guidance_scale: float,
    *,
    names: tuple[str, str] = ("num_inference_steps", "guidance_scale"),
) -> None:
    """Raise ArgumentError unless these can be sampled with; ``names`` is how the caller spells the two."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most_steps:
        raise ArgumentError(
            names[0],
            expected=f"a whole number from 1 to {most_steps}",
            found=repr(steps),
            mend="pass 10 or so for KOALA-Lightning, 25 for KOALA",
        )
    number = isinstance(guidance_scale, Real) and not isinstance(guidance_scale, bool)
    if not number or not abs(guidance_scale) < _LARGEST_FLOAT32:
        raise ArgumentError(
            names[1], expected="a finite number", found=repr(guidance_scale), mend="pass 3.5 or so, or 1 for none"
        )


def check_profile(profile: Profile, spec: ModelSpec) -> None:
    """Raise ArgumentError unless the model can be compiled for this profile."""
    multiple = spec.vae.scale_factor
    for option, pixels in (("--height", profile.height), ("--width", profile.width)):
        if pixels % multiple or pixels < SMALLEST_SIDE:
            near = max(SMALLEST_SIDE, (pixels + multiple // 2) // multiple * multiple)
            raise ArgumentError(
                option,
                expected=f"a multiple of {multiple} pixels, at least {SMALLEST_SIDE}",
                found=str(pixels),
                mend=f"pass {option} {near}",
            )
    if profile.batch < 1:
        raise ArgumentError(
            "--batch", expected="at least 1 picture", found=str(profile.batch), mend="pass --batch 1 or more"
        )
    if profile.precision not in PRECISIONS:
        raise ArgumentError(
            "--precision",
            expected=" or ".join(PRECISIONS),
            found=repr(profile.precision),
            mend="pass --precision fp16 for a GPU",
        )


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


def read_scheduler(config: Config) -> SchedulerSpec:
    """Return the sampler's specification; raises CheckpointError for anything but a plain EulerDiscrete."""
    file = "scheduler/scheduler_config.json"
    name = config.get("_class_name")
    if name != "EulerDiscreteScheduler":
        raise CheckpointError(
            f"{file}: _class_name",
            expected="EulerDiscreteScheduler, the one sampler that can be compiled in",
            found=str(name),
            mend="save the folder with pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)",
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


def _require(file: str, key: str, found: object, expected: object, why: str = "", mend: str = _MEND_SHAPE) -> None:
    if found != expected:
        raise CheckpointError(
            f"{file}: {key}",
            expected=f"{expected}{f' ({why})' if why else ''}",
            found=str(found),
            mend=mend,
        )


def _require_plain(file: str, key: str, found: object, expected: object) -> None:
    mend = f"save the folder with EulerDiscreteScheduler.from_config(pipe.scheduler.config, {key}={expected!r})"
    _require(file, key, found, expected, "the plain sampler, which is what can be compiled in", mend)


def _one_of(file: str, config: Config, key: str, allowed: tuple[str, ...], default: str) -> str:
    value = config.get(key, default)
    if value not in allowed:
        raise CheckpointError(
            f"{file}: {key}",
            expected=" or ".join(allowed),
            found=repr(value),
            mend="save the checkpoint with one of these",
        )
    return str(value)
