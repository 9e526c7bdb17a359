"""Trains the tiny VAE: an AutoencoderTiny that draws what the VAE's decoder draws, for a seventh of its arithmetic.

Half of what it learns from are latents as they are between the steps of a picture, with noise left in them, because
that is what previews are made of. Its encoder learns to find the VAE's latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from koala_tiny.autoencoder import to_tensor
from koala_tiny.data import pictures_of
from koala_tiny.fit import Recipe, fit, save_state

RECIPE = Recipe("preview-decoder", steps=4000, learning_rate=3e-3)
PICTURES = 2048
BATCH = 8
FIRST = 10**7  # of the seeds: pictures that no other stage learns from
WIDTH = 16
LARGEST_NOISE = 1.0  # standard deviation, as large as that of the latents; more hides the picture


def make_tiny_vae() -> Any:
    """Return an AutoencoderTiny: latents [B, 4, H / 8, W / 8] as the U-Net has them to pictures [B, 3, H, W]."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 1, 3),
        num_decoder_blocks=(3, 2, 1, 0),
    )


def train_tiny_vae(vae: Any, folder: Path, share: float = 1.0) -> Any:
    """Return the AutoencoderTiny that learnt from ``vae``, an AutoencoderKL; ``folder`` keeps what is not done."""
    torch.manual_seed(0)
    tiny = make_tiny_vae().to(memory_format=torch.channels_last)
    pictures, latents, noisy, decoded = _examples(vae, folder, max(BATCH, round(PICTURES * share)))

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(pictures), (BATCH,))
        error = tiny.decode(noisy[rows], return_dict=False)[0] - _to_range(decoded[rows])
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        found = tiny.encode(_to_range(pictures[rows]), return_dict=False)[0]
        total: Tensor = error.abs().mean() + edges + 0.1 * (found - latents[rows]).abs().mean()
        return total

    fit(RECIPE.shortened(share), nn.ModuleDict({"tiny": tiny}), loss, folder)
    return tiny.eval()


@torch.no_grad()
def _examples(vae: Any, folder: Path, count: int) -> tuple[Tensor, ...]:
    """Return pictures, their latents, latents with noise in every other one, and what the VAE's decoder makes of these.

    Pictures are uint8 [N, 3, H, W], latents float32 in the U-Net's unit.
    """
    file = folder / "preview-examples.pt"
    if not file.is_file():
        generator, parts = torch.Generator().manual_seed(0), []
        for start in track(range(0, count, 32), description="decoding"):
            pictures = pictures_of(range(FIRST + start, FIRST + min(start + 32, count)))
            latents = vae.encode(to_tensor(pictures)).latent_dist.mean * vae.config.scaling_factor
            spread = torch.rand(len(latents), generator=generator) * LARGEST_NOISE
            spread[::2] = 0
            noisy = latents + spread.view(-1, 1, 1, 1) * torch.randn(latents.shape, generator=generator)
            decoded = vae.decode(noisy / vae.config.scaling_factor, return_dict=False)[0]
            parts.append((_to_bytes(to_tensor(pictures)), latents, noisy, _to_bytes(decoded)))
        save_state([torch.cat(each) for each in zip(*parts, strict=True)], file)
    return tuple(torch.load(file, weights_only=True))


def _to_bytes(pictures: Tensor) -> Tensor:
    return (pictures * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)


def _to_range(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1
