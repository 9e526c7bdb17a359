"""A checkpoint's own configuration files to a ModelSpec.

Every SDXL-shaped checkpoint (one U-Net with text and time conditioning, two CLIP text encoders, one VAE, a scheduler
of ``koala_bundle.schedulers``) gives a specification; every other one gives a CheckpointError that names the file and
key. model_index.json decides which class reads a folder, as it does in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from koala_bundle.errors import CheckpointError
from koala_bundle.scheduler_keys import KEYS
from koala_bundle.schedulers import SchedulerSpec
from koala_bundle.spec import ModelSpec, TextEncoderSpec, UNetSpec, VAESpec
from koala_export.fields import Fields, shown

Config = Mapping[str, Any]

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
CONFIG_FILES = {
    "model_index": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    **{name: f"{name}/config.json" for name in MODELS},
}
TINY = "AutoencoderTiny"
"""diffusers' class of TAESD's shape: plain convolutions, no distribution."""
CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "scheduler": ("diffusers", tuple(KEYS)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL", TINY)),
}
"""Library and classes of each folder; of two tokenizers, the second is the older name of the first."""
OPTIONAL = ("image_encoder", "feature_extractor")
"""Parts of diffusers' pipeline that draw nothing from a prompt."""
OTHER_CONDITIONS = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
    "time_cond_proj_dim",
)
"""Keys of a U-Net that takes more than text and sizes, null in SDXL."""
PREVIEW_DECODER = "preview_decoder"
"""A VAE beside the checkpoint's own (``other_models``), and the component that is made of it."""
_FIX_SHAPE = "use a checkpoint of the SDXL shape, saved by diffusers"


def source_file(component: str) -> str:
    """Return the configuration file that a component's graph comes from."""
    if component == PREVIEW_DECODER:
        return "config.json of the preview decoder"
    return CONFIG_FILES[{"denoiser": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}.get(component, component)]


def read_spec(configs: Mapping[str, Config]) -> ModelSpec:
    """Return the specification of a checkpoint.

    ``configs`` holds the parsed JSON of ``model_index`` and of each component's config file, keyed by folder name.
    Raises CheckpointError naming the file and key where the checkpoint is not of the SDXL shape.
    """
    classes = read_classes(configs["model_index"])
    first = _text_encoder(configs["text_encoder"], pooled=False)
    second = _text_encoder(configs["text_encoder_2"], pooled=True)
    if first.sequence_length != second.sequence_length:
        raise _fields("text_encoder_2", configs["text_encoder_2"]).error(
            "max_position_embeddings",
            f"{first.sequence_length}, as in {CONFIG_FILES['text_encoder']}",
            str(second.sequence_length),
            _FIX_SHAPE,
        )
    unet = _unet(configs["unet"], first, second)
    vae = read_vae(configs["vae"], classes["vae"])
    why = "the VAE's latent_channels"
    for key in ("in_channels", "out_channels"):
        _fields("unet", configs["unet"]).require(key, vae.latent_channels, 4, why, _FIX_SHAPE)
    return ModelSpec(
        text_encoder=first,
        text_encoder_2=second,
        unet=unet,
        vae=vae,
        scheduler=read_scheduler(classes["scheduler"], configs["scheduler"]),
        force_zeros_for_empty_prompt=_fields("model_index", configs["model_index"]).flag(
            "force_zeros_for_empty_prompt", True
        ),
    )


def read_classes(index: Config) -> dict[str, str]:
    """Return the class that reads each folder. Raises CheckpointError unless they are those of the SDXL shape."""
    fields = _fields("model_index", index)
    fields.require("_class_name", "StableDiffusionXLPipeline", fix=_FIX_SHAPE)
    found = {}
    for name, (library, classes) in CLASSES.items():
        value = fields.raw(name, None)
        if not isinstance(value, list | tuple) or [*value] not in [[library, each] for each in classes]:
            sampler = "save the folder with pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)"
            wanted = "one of the schedulers that can be computed" if name == "scheduler" else classes[0]
            wanted = " or ".join(classes) if name == "vae" else wanted
            wrong = value[-1] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == library else value
            raise fields.error(name, wanted, shown(wrong), sampler if name == "scheduler" else _FIX_SHAPE)
        found[name] = str(value[1])
    for name in OPTIONAL:
        value = index.get(name, [None, None])
        if value != [None, None] and not _names_a_class(value):
            raise fields.error(name, "a library and a class, or two nulls for none", shown(value), _FIX_SHAPE)
    return found


def _names_a_class(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) and part for part in value)


def native_size(configs: Mapping[str, Config], spec: ModelSpec) -> tuple[int, int]:
    """Return the height and width in pixels that the U-Net was trained for, as diffusers takes it from sample_size."""
    size = configs["unet"].get("sample_size") or 128  # StableDiffusionXLPipeline's default_sample_size
    sides = [*size] if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**20 for side in sides):
        raise CheckpointError(
            "unet/config.json: sample_size",
            expected="the height and width of the latents",
            found=shown(size),
            fix="correct the file, or delete that line and pass a height and a width",
        )
    return sides[0] * spec.vae.scale_factor, sides[1] * spec.vae.scale_factor


def read_scheduler(class_name: str, config: Config) -> SchedulerSpec:
    """Return the scheduler of a checkpoint with the keys that any class reads.

    Raises CheckpointError naming the key that cannot be computed.
    """
    known = {key for keys in KEYS.values() for key, each in keys.items() if each.allowed is not None}
    kept = {key: config[key] for key in sorted(known & config.keys())}
    check_scheduler(SchedulerSpec(class_name, kept))
    # JSON has no infinity, which is the one value of lambda_min_clipped.
    return SchedulerSpec(class_name, {key: value for key, value in kept.items() if value != -math.inf})


def check_scheduler(spec: SchedulerSpec) -> SchedulerSpec:
    """Return ``spec``. Raises CheckpointError naming the key that cannot be computed."""
    if misfit := spec.misfit():
        raise Fields(CONFIG_FILES["scheduler"], {}).error(misfit.key, misfit.expected, misfit.found, misfit.fix)
    return spec


def _text_encoder(config: Config, *, pooled: bool) -> TextEncoderSpec:
    fields = _fields("text_encoder_2" if pooled else "text_encoder", config)
    # Defaults are those of transformers' CLIPTextConfig.
    return TextEncoderSpec(
        vocab_size=fields.integer("vocab_size", 49408),
        hidden_size=fields.integer("hidden_size", 512),
        sequence_length=fields.integer("max_position_embeddings", 77, least=3),
        projection_dim=fields.integer("projection_dim", 512) if pooled else None,
    )


def _unet(config: Config, first: TextEncoderSpec, second: TextEncoderSpec) -> UNetSpec:
    fields = _fields("unet", config)
    fields.require("addition_embed_type", "text_time", fix=_FIX_SHAPE)
    for key in OTHER_CONDITIONS:
        fields.require(key, None, fix=_FIX_SHAPE)
    width = first.hidden_size + second.hidden_size
    found = fields.raw("cross_attention_dim", 1280)
    if {*(found if isinstance(found, list | tuple) else [found])} != {width}:
        raise fields.error(
            "cross_attention_dim", f"{width} (the text encoders' hidden sizes together)", shown(found), _FIX_SHAPE
        )
    addition = fields.integer("addition_time_embed_dim", None)
    fields.require(
        "projection_class_embeddings_input_dim",
        (second.projection_dim or 0) + 6 * addition,
        why="the pooled width and six embedded sizes",
        fix=_FIX_SHAPE,
    )
    return UNetSpec(
        in_channels=fields.integer("in_channels", 4),
        block_out_channels=fields.integers("block_out_channels", (320, 640, 1280, 1280)),
        mid_block=fields.raw("mid_block_type", "UNetMidBlock2DCrossAttn") is not None,
        cross_attention_dim=width,
        addition_time_embed_dim=addition,
    )


def read_vae(config: Config, class_name: str, file: str = CONFIG_FILES["vae"]) -> VAESpec:
    """Return the specification of a VAE of one of its CLASSES. Raises CheckpointError naming the key of ``file``."""
    fields = Fields(file, config)
    fields.require("out_channels", 3, 3, "red, green and blue", _FIX_SHAPE)
    if class_name == TINY:
        # diffusers' pipelines take each level but the last for a doubling.
        fields.require("upsampling_scaling_factor", 2, 2, "pipelines compute sizes with it", _FIX_SHAPE)
        return VAESpec(
            latent_channels=fields.integer("latent_channels", 4),
            scale_factor=2 ** (len(fields.integers("decoder_block_out_channels", (64,) * 4)) - 1),
            scaling_factor=_not_zero(fields, "scaling_factor", 1.0),
            force_upcast=False,
        )
    return VAESpec(
        latent_channels=fields.integer("latent_channels", 4),
        scale_factor=2 ** (len(fields.integers("block_out_channels", (64,))) - 1),
        scaling_factor=_not_zero(fields, "scaling_factor", 0.18215),
        force_upcast=fields.flag("force_upcast", True),
    )


def _not_zero(fields: Fields, key: str, default: float) -> float:
    value = fields.number(key, default)
    if not value:
        raise fields.error(key, "another number than 0", "0")
    return value


def _fields(name: str, config: Config) -> Fields:
    return Fields(CONFIG_FILES[name], config)
