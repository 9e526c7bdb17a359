"""float16 for half a VAE whose checkpoint asks for float32 (``force_upcast``): exactly, by a power of two.

A decoder or encoder of this kind overflows float16 (65,504) in the activations between its norms. A group norm is
invariant to the scale of its input: norm(s x, s² eps) = norm(x, eps). So all activations between norms are multiplied
by s: weights and biases of the convolutions that read normalised values, only biases of those that read scaled values,
and eps to match. With s a power of two this is exact, and no operation has to stay in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from koala_export.module_passes.base import ModulePass

LARGEST = 65504.0  # of float16
HEADROOM = 16.0  # factor between the largest value measured here and float16's limit, for other pictures
_SMALLEST = -12  # exponent; weights of 1e-2 are still normal numbers in float16


@torch.no_grad()
def rescale(vae: Any) -> int | None:
    """Scale the half that ``vae`` (float32) has, in place, by 2^n and return n <= 0; None, unchanged, if none fits.

    The scale is the largest that leaves ``HEADROOM`` under float16's largest number for every activation of a decoding
    of noise of the latents' own variance, 16 x 16 latents, or of an encoding of pictures, from plain ones to noise.
    """
    half = vae.decoder or vae.encoder
    limit, largest = LARGEST / HEADROOM, _largest(vae)
    if largest <= limit:
        return 0
    if largest > limit * 2.0**-_SMALLEST:
        return None
    exponent = -math.ceil(math.log2(largest / limit))
    _scale(half, 2.0**exponent)
    if _largest(vae) > limit:  # in values that the scale does not reach, such as queries and keys
        _scale(half, 2.0**-exponent)
        return None
    return exponent


def _largest(vae: Any) -> float:
    """Return the largest magnitude that any module of the half gives."""
    found = [0.0]

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        found.append(float(output.abs().max()))

    modules = [*(vae.decoder or vae.encoder).modules()]
    hooks = [module.register_forward_hook(watch) for module in modules]
    generator = torch.Generator().manual_seed(0)
    try:
        if vae.decoder is not None:
            noise = torch.randn(4, vae.config.latent_channels, 16, 16, generator=generator)
            vae.decode(noise / vae.config.scaling_factor, return_dict=False)
        else:
            coarse = [torch.rand(2, 3, side, side, generator=generator) for side in (1, 4, 32, 128)]
            pictures = [nn.functional.interpolate(each, (128, 128), mode="bilinear") for each in coarse]
            vae.encode(torch.cat(pictures).round() * 2 - 1, return_dict=False)
            vae.encode(torch.cat(pictures) * 2 - 1, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return max(found) if all(map(math.isfinite, found)) else math.inf


def _scale(half: Any, factor: float) -> None:
    def scale(layer: Any, *, weight: bool) -> None:
        if weight:
            layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)

    scale(half.conv_in, weight=True)
    outer = getattr(half, "up_blocks", None) or half.down_blocks
    blocks = [half.mid_block, *outer]
    for resnet in (resnet for block in blocks for resnet in block.resnets):
        for norm in (resnet.norm1, resnet.norm2):
            norm.eps *= factor**2
        scale(resnet.conv1, weight=True)
        scale(resnet.conv2, weight=True)
        if resnet.conv_shortcut is not None:
            scale(resnet.conv_shortcut, weight=False)
    for attention in half.mid_block.attentions or ():
        if attention is not None:
            attention.group_norm.eps *= factor**2
            scale(attention.to_out[0], weight=True)
    for block in outer:
        for each in getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ():
            scale(each.conv, weight=False)
    half.conv_norm_out.eps *= factor**2


def _run(model: Any, dtype: torch.dtype) -> str | None:
    """Make a VAE that asks for float32 a float16 one, if the bundle is float16 and a scale allows it."""
    if not getattr(model.config, "force_upcast", False) or dtype != torch.float16:
        return None
    exponent = rescale(model)
    if exponent is None:
        return "float32, as the checkpoint asks: no scale of its activations fits float16"
    model.half()
    return f"float16, with activations scaled by 2^{exponent}"


RESCALE = ModulePass("rescale", _run)
