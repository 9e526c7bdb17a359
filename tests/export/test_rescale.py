"""A VAE whose activations overflow float16 decodes in float16 all the same, and to the same picture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from koala_bundle.spec import Profile
from koala_export.configs import read_spec
from koala_export.module_passes.rescale import HEADROOM, LARGEST, rescale
from koala_export.modules import build_module
from koala_export.source import open_source


def make_vae(gain: float) -> Any:
    """A small AutoencoderKL; what enters its residual stream, and each block that adds to it, is ``gain`` times as
    large as torch draws it, which float32 does not mind."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    channels = (16, 16, 32, 32)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=channels, norm_num_groups=8, force_upcast=True, **blocks).eval()
    with torch.no_grad():
        for name, weight in vae.decoder.named_parameters():
            if name.startswith("conv_in") or ".conv2." in name or "to_out" in name:
                weight *= gain
    return vae


@torch.no_grad()
def decode(vae: Any, seed: int = 7) -> torch.Tensor:
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(seed)) / vae.config.scaling_factor
    pixels: torch.Tensor = vae.decode(noise.to(vae.dtype), return_dict=False)[0]
    return pixels.float()


@pytest.mark.parametrize("gain", [2.0**12, 2.0**16, 2.0**20])
def test_the_picture_stays(gain: float) -> None:
    vae = make_vae(gain)
    wanted = decode(vae)
    plain = decode(copy.deepcopy(vae).half())
    assert torch.isfinite(wanted).all()
    assert torch.isfinite(plain).all() == (gain == 2.0**12), "what float16 does without this"
    exponent = rescale(vae)
    assert exponent is not None
    assert exponent < 0
    # Powers of two change no digit, except where a sum meets eps.
    torch.testing.assert_close(decode(vae), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    got = decode(vae.half())
    # 2^-11 in each of some 60 operations in a row, each of a size with the result.
    assert float((got - wanted).abs().max()) <= 60**0.5 * 2.0**-11 * 4 * float(wanted.abs().max())
    peaks: list[float] = []
    for module in vae.decoder.modules():
        module.register_forward_hook(lambda _, __, output: peaks.append(float(output.abs().max())))
    decode(vae, seed=8)
    assert max(peaks) <= 4 * LARGEST / HEADROOM


def test_what_fits_stays_as_it_is() -> None:
    vae = make_vae(1.0)
    before = copy.deepcopy(vae.state_dict())
    assert rescale(vae) == 0
    for name, weight in vae.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("broken", ["stream", "infinite", "queries"])
def test_what_no_scale_helps_stays_float32(broken: str) -> None:
    """A stream beyond all scales, or beyond float32; and queries, which follow a norm and which no scale reaches."""
    vae = make_vae({"stream": 2.0**30, "infinite": 2.0**127, "queries": 1.0}[broken])
    with torch.no_grad():
        if broken == "queries":
            vae.decoder.mid_block.attentions[0].to_q.weight *= 2.0**20
    before = copy.deepcopy(vae.state_dict())
    assert rescale(vae) is None
    for name, weight in vae.state_dict().items():
        assert torch.equal(weight, before[name])
    assert {module.eps for module in vae.decoder.modules() if hasattr(module, "num_groups")} == {1e-6}


@pytest.mark.parametrize(("passes", "dtype"), [(("rescale",), torch.float16), ((), torch.float32)])
def test_it_can_be_left_out(checkpoint: Callable[[str], Path], passes: tuple[str, ...], dtype: torch.dtype) -> None:
    source = open_source(str(checkpoint("sdxl-like")), random_weights=False, precision="fp16")
    spec, said = read_spec(source.configs), list[str]()
    profile = Profile(height=64, width=64, batch=1, precision="fp16", cfg=True)
    module = build_module("vae_decoder", source, spec, profile, passes, said.append)
    assert spec.vae.force_upcast
    assert {weight.dtype for weight in module.parameters()} == {dtype}
    assert len(said) == len(passes)
