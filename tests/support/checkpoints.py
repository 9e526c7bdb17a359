"""Random-weight checkpoints of several SDXL shapes, saved by diffusers itself, with the real CLIP vocabulary.

Small enough that a picture takes a fraction of a second, and laid out like the real ones.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import koala_tiny.checkpoint
from koala_tiny.tokenizer import save_tokenizers


@dataclass(frozen=True)
class Shape:
    """Sizes of a small checkpoint; the names of the fields are diffusers' own where it has them."""

    mid_block_type: str | None = None
    layers_per_block: int = 1
    transformer_layers_per_block: tuple[int, ...] = (1, 1, 2)
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    attention_head_dim: tuple[int, ...] = (1, 2, 4)
    hidden_sizes: tuple[int, int] = (32, 64)
    addition_time_embed_dim: int = 32
    vae_channels: tuple[int, ...] = (16, 16, 32, 32)
    scheduler: dict[str, Any] = field(default_factory=dict)
    force_zeros: bool = True
    force_upcast: bool = False


SHAPES = {
    "koala-700m-like": Shape(scheduler={"timestep_spacing": "trailing"}),
    "koala-1b-like": Shape(mid_block_type="UNetMidBlock2DCrossAttn", scheduler={"timestep_spacing": "leading"}),
    "sdxl-like": Shape(
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=2,
        scheduler={"timestep_spacing": "linspace", "interpolation_type": "log_linear"},
        force_zeros=False,
        force_upcast=True,
    ),
    "other-widths": Shape(
        block_out_channels=(48, 80, 96),
        attention_head_dim=(3, 5, 2),
        hidden_sizes=(48, 40),
        addition_time_embed_dim=16,
        transformer_layers_per_block=(1, 2, 1),
        scheduler={
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "beta_schedule": "linear",
        },
    ),
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def save_checkpoint(shape: Shape, folder: Path, *, fp16: bool = False) -> Path:
    """Write ``shape`` to ``folder`` as diffusers lays it out; with ``fp16`` also (only) the half-precision files."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    first, second = shape.hidden_sizes
    return koala_tiny.checkpoint.save_checkpoint(
        folder,
        _clip_merges(),
        fp16=fp16,
        force_zeros=shape.force_zeros,
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=list(shape.vae_channels),
            norm_num_groups=8,
            scaling_factor=0.13025,
            sample_size=128,
            force_upcast=shape.force_upcast,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_text_config(first, "quick_gelu"))),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**_text_config(second, "gelu"))),
        unet=UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type=shape.mid_block_type,
            layers_per_block=shape.layers_per_block,
            transformer_layers_per_block=list(shape.transformer_layers_per_block),
            block_out_channels=shape.block_out_channels,
            attention_head_dim=shape.attention_head_dim,
            cross_attention_dim=first + second,
            addition_embed_type="text_time",
            addition_time_embed_dim=shape.addition_time_embed_dim,
            projection_class_embeddings_input_dim=second + 6 * shape.addition_time_embed_dim,
            use_linear_projection=True,
            norm_num_groups=8,
        ),
        scheduler=EulerDiscreteScheduler(**(SCHEDULER | shape.scheduler)),
    )


def save_tiny_vae(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write an AutoencoderTiny with random weights of the size that keeps activations alive; others by ``changes``."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (16,) * 4}
    blocks: dict[str, Any] = {"num_encoder_blocks": (0, 0, 0, 1), "num_decoder_blocks": (2, 1, 1, 0)}
    vae: Any = AutoencoderTiny(**sizes | blocks | changes)
    for name, weight in vae.named_parameters():
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight)
        if name == "decoder.layers.0.bias":
            torch.nn.init.normal_(weight)
    torch.nn.init.normal_(vae.decoder.layers[-1].weight, std=0.02)
    torch.nn.init.constant_(vae.decoder.layers[-1].bias, 0.5)
    vae.save_pretrained(folder)
    return folder


def save_full_size(preset: str, folder: Path) -> Path:
    """Write a preset with random weights as its repository holds it: fp16 variants, and one plain VAE."""
    from koala_export.presets import PRESETS
    from koala_export.random_weights import RandomCheckpoint

    RandomCheckpoint(PRESETS[preset]).save(folder, "fp16")
    save_clip_tokenizers(folder)
    return folder


def save_learned_words(folder: Path, shape: Shape) -> tuple[Path, ...]:
    """Write two files of learned words: one of two vectors for both text encoders, and one for the second alone."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    first, second = shape.hidden_sizes
    folder.mkdir(parents=True, exist_ok=True)
    both, one = folder / "zebrastyle.safetensors", folder / "learned_embeds.safetensors"
    for path, vectors in ((both, {"clip_l": (2, first), "clip_g": (2, second)}), (one, {"<fog>": (second,)})):
        save_file({name: torch.randn(size, generator=generator) for name, size in vectors.items()}, path)
    return both, one


def save_clip_tokenizers(folder: Path) -> None:
    """Write both tokenizers with CLIP's own vocabulary."""
    save_tokenizers(folder, _clip_merges())


def _text_config(hidden_size: int, activation: str) -> dict[str, Any]:
    # eos_token_id 2 is what SDXL's configs say; CLIP then takes the pooled state at the largest id.
    return {
        "vocab_size": 49408,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": hidden_size,
        "hidden_act": activation,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


def _clip_merges() -> list[str]:
    """The 48,894 merges of OpenAI's CLIP, from the installed open_clip package (found without importing it)."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("open_clip is not installed; `make` installs it without its dependencies")
    packed = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1:48895]
