"""The networks of koala-tiny: diffusers' and transformers' own classes in the shape of KOALA, 7.7 M parameters in all.

Like KOALA-700M: three levels, one layer per block, no mid block, attention on the two lower levels, sizes and crop as
extra conditioning, and the pooled embedding of the second text encoder. What is smaller is the width.
"""

from __future__ import annotations

from typing import Any

SEQUENCE_LENGTH = 77
HIDDEN_SIZES = (64, 96)  # of the two text encoders
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def make_vae() -> Any:
    """Return an AutoencoderKL for 128 x 128 pictures: narrow where the picture is large, wide where it is small."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 16, 64, 96],
        layers_per_block=1,
        # Two groups: with as many groups as channels the last norm would take the colours out.
        norm_num_groups=2,
        latent_channels=4,
        sample_size=128,
        scaling_factor=0.13025,  # SDXL's
        force_upcast=False,
    )


def make_unet() -> Any:
    """Return the U-Net, latents [B, 4, 16, 16] to prediction [B, 4, 16, 16]."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        layers_per_block=1,
        transformer_layers_per_block=[0, 2, 1],
        block_out_channels=(64, 96, 128),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=sum(HIDDEN_SIZES),
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=HIDDEN_SIZES[1] + 6 * 32,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def make_text_encoders(vocab_size: int) -> tuple[Any, Any]:
    """Return CLIPTextModel and CLIPTextModelWithProjection; the last layer of the first is, as in SDXL, unused."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(hidden_size: int, activation: str) -> Any:
        return CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=3,
            num_attention_heads=hidden_size // 32,
            projection_dim=hidden_size,
            max_position_embeddings=SEQUENCE_LENGTH,
            hidden_act=activation,
            # The ids of SDXL's configs; with 2, CLIP pools at the largest id of a prompt, the end of the text.
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        )

    first, second = HIDDEN_SIZES
    return CLIPTextModel(config(first, "quick_gelu")), CLIPTextModelWithProjection(config(second, "gelu"))
