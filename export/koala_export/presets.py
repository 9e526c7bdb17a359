"""Named presets: shape and recommended sampling settings of published SDXL-shaped models.

Covers every configuration file that a preset's checkpoint folder holds, so that a folder of the
right shape can be written without a download. Does not cover weights, tokenizer files, or a
checkpoint found on disk, whose own files win over anything written here.

Sources, by short name: "card" is the model card in the named Hugging Face repository, "listing"
that repository's file sizes, "ComfyUI" the tables in ComfyUI's model_detection.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One published model.

    ``hub_id`` names a repository that ``StableDiffusionXLPipeline.from_pretrained`` loads; None
    where only a U-Net file is published. ``unet`` holds every keyword argument of diffusers'
    ``UNet2DConditionModel``, ready for JSON. ``guidance_scale`` at or below 1 means no
    classifier-free guidance. ``timestep_spacing`` is the recommended one, which the checkpoint's
    scheduler file need not carry (see ``configs``). ``force_upcast`` is the VAE's, ``scheduler`` diffusers' class.
    """

    hub_id: str | None
    unet: Mapping[str, object]
    num_inference_steps: int
    guidance_scale: float
    timestep_spacing: str
    force_upcast: bool
    scheduler: str = "EulerDiscreteScheduler"


def _unet(
    transformer_layers: list[object],
    *,
    layers_per_block: int = 2,
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
    reverse_transformer_layers: list[object] | None = None,
    sample_size: int = 128,
) -> dict[str, object]:
    """Return SDXL-base's unet/config.json with other depths, and newer diffusers' keys at default.

    ``transformer_layers``: transformer blocks per resolution, finest first. The first entry is
    never read, because the finest resolution (DownBlock2D, UpBlock2D) has no attention.
    ``sample_size``: side of the latents, an eighth of the picture's.
    """
    # fmt: off
    return {
        "sample_size": sample_size,
        "in_channels": 4, "out_channels": 4, "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        # Always written: where this key is absent, diffusers builds the attention mid block.
        "mid_block_type": mid_block_type,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280], "layers_per_block": layers_per_block,
        "transformer_layers_per_block": transformer_layers,
        "reverse_transformer_layers_per_block": reverse_transformer_layers,
        # diffusers' old misnomer: these are head counts, of 64 channels each.
        "attention_head_dim": [5, 10, 20], "num_attention_heads": None,
        "cross_attention_dim": 2048,  # 768 + 1280: both text encoders' hidden states, side by side
        "use_linear_projection": True, "attention_type": "default", "upcast_attention": False,
        "only_cross_attention": False, "mid_block_only_cross_attention": None,
        "dual_cross_attention": False, "cross_attention_norm": None,
        "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,  # 1280 pooled text + 6 time ids x 256
        "class_embed_type": None, "num_class_embeds": None, "class_embeddings_concat": False,
        "encoder_hid_dim": None, "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True, "freq_shift": 0, "time_embedding_type": "positional",
        "time_embedding_dim": None, "time_embedding_act_fn": None, "timestep_post_act": None,
        "time_cond_proj_dim": None, "resnet_time_scale_shift": "default",
        "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "act_fn": "silu",
        "norm_num_groups": 32, "norm_eps": 1e-05, "dropout": 0.0, "downsample_padding": 1,
        "mid_block_scale_factor": 1, "conv_in_kernel": 3, "conv_out_kernel": 3,
    }
    # fmt: on


_SDXL = _unet([1, 2, 10])  # stabilityai/stable-diffusion-xl-base-1.0
# Depths: etri-vilab cards, and ComfyUI KOALA_700M / KOALA_1B, whose middle -2 is no mid block.
_KOALA_700M = _unet([0, 2, 5], layers_per_block=1, mid_block_type=None)
_KOALA_1B = _unet([0, 2, 6], layers_per_block=1)
# 512 px, and ancestral Euler on trailing timesteps: stabilityai/sdxl-turbo, SDXL-base's shape.
_TURBO_SIDE, _TURBO_SCHEDULER = 64, "EulerAncestralDiscreteScheduler"
_SDXL_TURBO = _unet([1, 2, 10], sample_size=_TURBO_SIDE)
_KOALA_TURBO_700M = _unet([0, 2, 5], layers_per_block=1, mid_block_type=None, sample_size=_TURBO_SIDE)
_KOALA_TURBO_1B = _unet([0, 2, 6], layers_per_block=1, sample_size=_TURBO_SIDE)
# Depths: ComfyUI SSD_1B, whose up path is listed in reverse. Its middle -1, a lone resnet, is
# UNetMidBlock2D, added for this model in diffusers pull request 5400. The nesting explains the 93
# lines and 1.96 kB of a re-saved SSD-1B (n1i/sdxl-ssd-1b-lcm listing).
_SSD_1B = _unet(
    [[1], [2, 2], [4, 4]],
    mid_block_type="UNetMidBlock2D",
    reverse_transformer_layers=[[4, 4, 10], [2, 1, 1], 1],
)
# Depths: ComfyUI Segmind_Vega. Symmetric, so integers suffice and nested lists would not fit the
# 1.76 kB of the segmind/Segmind-Vega listing.
_SSD_VEGA = _unet([1, 1, 2], mid_block_type="UNetMidBlock2D")


def _koala(name: str, unet: Mapping[str, object], steps: int, scale: float, spacing: str) -> Preset:
    # The koala-700m and koala-1b listings show the 631-byte vae/config.json of
    # madebyollin/sdxl-vae-fp16-fix, made to run in fp16. The other four repositories' VAE listings
    # were not readable and are taken to match.
    return Preset(f"etri-vilab/{name}", unet, steps, scale, spacing, force_upcast=False)


PRESETS: Mapping[str, Preset] = {
    # Steps and guidance: youngwanLEE/sdxl-koala README; the cards' snippets leave both out.
    "koala-700m": _koala("koala-700m", _KOALA_700M, 25, 7.5, "leading"),
    "koala-1b": _koala("koala-1b", _KOALA_1B, 25, 7.5, "leading"),
    # Steps, guidance and spacing: cards.
    "koala-lightning-700m": _koala("koala-lightning-700m", _KOALA_700M, 10, 3.5, "trailing"),
    "koala-lightning-1b": _koala("koala-lightning-1b", _KOALA_1B, 10, 3.5, "trailing"),
    # Same README: like koala-700m and koala-1b.
    "koala-700m-llava-cap": _koala("koala-700m-llava-cap", _KOALA_700M, 25, 7.5, "leading"),
    "koala-1b-llava-cap": _koala("koala-1b-llava-cap", _KOALA_1B, 25, 7.5, "leading"),
    # Steps and guidance: the pipeline's own defaults in diffusers.
    "sdxl-base": Preset("stabilityai/stable-diffusion-xl-base-1.0", _SDXL, 50, 5.0, "leading", True),
    # ByteDance/SDXL-Lightning card: its 4-step U-Net inside SDXL-base, guidance_scale=0.
    "sdxl-lightning": Preset(None, _SDXL, 4, 0.0, "trailing", True),
    # Card of sdxl-turbo: one step, guidance_scale=0, 512 px.
    "sdxl-turbo": Preset("stabilityai/sdxl-turbo", _SDXL_TURBO, 1, 0.0, "trailing", True, _TURBO_SCHEDULER),
    # Of the paper (arXiv 2312.04005), distilled from SDXL-Turbo and not published: sampled as that.
    "koala-turbo-700m": Preset(None, _KOALA_TURBO_700M, 1, 0.0, "trailing", False, _TURBO_SCHEDULER),
    "koala-turbo-1b": Preset(None, _KOALA_TURBO_1B, 1, 0.0, "trailing", False, _TURBO_SCHEDULER),
    # Cards: "CFG around 9.0", steps left to the default of 50; segmind/SSD-1B's inference.py says
    # 50 and 9. VAE: listings of 602 and 642 bytes, SDXL-base's file from two diffusers versions.
    "ssd-1b": Preset("segmind/SSD-1B", _SSD_1B, 50, 9.0, "leading", True),
    "ssd-vega": Preset("segmind/Segmind-Vega", _SSD_VEGA, 50, 9.0, "leading", True),
}


# fmt: off
def _text_encoder(architecture: str, hidden_act: str, width: int, layers: int) -> dict[str, object]:
    """Return one of SDXL-base's text encoder configurations; both have 64 channels per head."""
    return {
        "architectures": [architecture], "model_type": "clip_text_model",
        "hidden_act": hidden_act, "hidden_size": width, "intermediate_size": 4 * width,
        "projection_dim": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "max_position_embeddings": 77, "vocab_size": 49408, "bos_token_id": 0, "pad_token_id": 1,
        "eos_token_id": 2,  # not the tokenizer's 49407: makes transformers pool at argmax(ids)
        "attention_dropout": 0.0, "dropout": 0.0, "initializer_factor": 1.0,
        "initializer_range": 0.02, "layer_norm_eps": 1e-05,
        "torch_dtype": "float16", "transformers_version": "4.32.0.dev0",
    }


def _vae(force_upcast: bool) -> dict[str, object]:
    """Return SDXL-base's VAE configuration, or sdxl-vae-fp16-fix's where no upcast is wanted."""
    return {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "scaling_factor": 0.13025, "force_upcast": force_upcast,
        "sample_size": 1024 if force_upcast else 512,  # as published; only tiling reads it
    }


# SDXL-base's file, 479 bytes; same size in the KOALA listings, Lightning included.
_SCHEDULER: Mapping[str, object] = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0",
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "trained_betas": None, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "interpolation_type": "linear", "timestep_spacing": "leading", "steps_offset": 1,
    "use_karras_sigmas": False, "clip_sample": False, "sample_max_value": 1.0,
    "set_alpha_to_one": False, "skip_prk_steps": True,
}

# SDXL-base's file, 609 bytes as in KOALA. segmind's leave out add_watermarker, null by default.
_MODEL_INDEX: Mapping[str, object] = {
    "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True, "add_watermarker": None,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# fmt: on


def configs(preset: Preset) -> dict[str, dict[str, object]]:
    """Return the JSON file of each component of a checkpoint folder, by component; yours to change.

    The scheduler's spacing is "leading" for every preset but the Turbo ones, as published: the
    Lightning cards replace it by what ``preset.timestep_spacing`` says after loading.
    """
    turbo = preset.scheduler == _TURBO_SCHEDULER
    files: dict[str, Mapping[str, object]] = {
        "text_encoder": _text_encoder("CLIPTextModel", "quick_gelu", 768, 12),
        "text_encoder_2": _text_encoder("CLIPTextModelWithProjection", "gelu", 1280, 32),
        "unet": {"_class_name": "UNet2DConditionModel", **preset.unet},
        "vae": _vae(preset.force_upcast),
        "scheduler": {
            **_SCHEDULER,
            "_class_name": preset.scheduler,
            "timestep_spacing": "trailing" if turbo else "leading",
        },
        "model_index": {**_MODEL_INDEX, "scheduler": ["diffusers", preset.scheduler]},
    }
    return {name: deepcopy(dict(file)) for name, file in files.items()}
