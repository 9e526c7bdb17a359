"""Trains the VAE: first on small windows around things, which are four times cheaper, then on whole pictures.

The weight of the KL divergence falls after the first stage. A strong one makes the latents smooth at once, but leaves
two of the four channels nearly unused and with them the edges between colours of like brightness (red on brown).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from koala_tiny.drawing import draw, soften
from koala_tiny.fit import Recipe, fit
from koala_tiny.models import make_vae
from koala_tiny.scenes import SIZE, training_pair

BRIGHTNESS = Recipe("vae-windows", steps=6000, learning_rate=2e-3)
COLOUR = Recipe("vae-colour", steps=4500, learning_rate=2e-3)
WHOLE = Recipe("vae-whole", steps=1200, learning_rate=5e-4)
WINDOW = 64  # pixels
STRONG_KL, WEAK_KL = 3e-4, 2e-5


def train_vae(folder: Path, share: float = 1.0, batch: int = 32) -> Any:
    """Return the AutoencoderKL after a ``share`` of the steps.

    Times its scaling_factor, each channel of the latents has unit variance.
    """
    torch.manual_seed(0)
    modules = nn.ModuleDict({"vae": make_vae()})
    # Each stage starts with the weights of the one before; one that is done is loaded and passes.
    stages: tuple[tuple[Recipe, Callable[[int], Tensor], float], ...] = (
        (BRIGHTNESS, lambda step: _windows(step, batch), STRONG_KL),
        (COLOUR, lambda step: _windows(10**6 + step, batch), WEAK_KL),
        (WHOLE, lambda step: _whole(step, batch // 4), WEAK_KL),
    )
    for recipe, pictures, kl_weight in stages:
        fit(recipe.shortened(share), modules, partial(_loss, modules["vae"], pictures, kl_weight), folder)
    vae: Any = modules["vae"].eval()
    normalise_latents(vae, torch.cat([_whole(10**6 + i, 32) for i in range(16)]))
    return vae


@torch.no_grad()
def normalise_latents(vae: Any, pictures: Tensor) -> None:
    """Give each latent channel mean 0 and variance 1 once multiplied by scaling_factor, over ``pictures``.

    Exact: the map z' = (z - m) / s goes into the 1 x 1 convolution after the encoder, its inverse into the one before
    the decoder. Else the U-Net would learn the channels of small variance last.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pictures, 32)])
    mean = latents.mean((0, 2, 3))
    scale = latents.std((0, 2, 3)) * vae.config.scaling_factor
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= scale.view(1, -1, 1, 1)
    channels = len(mean)
    before.weight[:channels] /= scale.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / scale
    before.bias[channels:] -= 2 * scale.log()  # the other half is the logarithm of the variance


def to_tensor(pictures: list[Any]) -> Tensor:
    """Return uint8 pictures [size, size, 3] as float32 [B, 3, size, size] between -1 and 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _whole(seed: int, count: int) -> Tensor:
    rng = Random(f"whole {seed}")
    pictures = [draw(training_pair(rng)[1]) for _ in range(count)]
    return to_tensor([soften(p, rng.randint(SIZE // 8, SIZE)) if rng.random() < 0.1 else p for p in pictures])


def _windows(seed: int, count: int) -> Tensor:
    rng = Random(f"windows {seed}")
    pictures = []
    for _ in range(count):
        _, scene = training_pair(rng)
        thing = rng.choice(scene.things)
        left, top = (centre - WINDOW / 2 + rng.uniform(-28, 28) for centre in (thing.x, thing.y))
        picture = draw(scene, size=WINDOW, left=left, top=top)
        pictures.append(soften(picture, rng.randint(WINDOW // 8, WINDOW)) if rng.random() < 0.1 else picture)
    return to_tensor(pictures)


def _loss(vae: Any, pictures_of: Callable[[int], Tensor], kl_weight: float, step: int) -> Tensor:
    """Mean absolute error of pixels and of their differences to neighbours, which keeps edges sharp, and KL."""
    pictures = pictures_of(step)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        error = vae.decode(posterior.sample()).sample.float() - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss: Tensor = error.abs().mean() + edges + kl_weight * divergence
    return loss
