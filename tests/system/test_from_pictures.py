"""Pictures from pictures against diffusers' StableDiffusionXLImg2ImgPipeline and StableDiffusionXLInpaintPipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from koala_runtime import Pipeline
from koala_runtime.samplers import NAMES
from tests.support.diffusers import open_reference

SHAPE = "koala-700m-like"
FULL = pytest.mark.full
BUNDLES = [
    (SHAPE, 1),
    pytest.param((SHAPE, 2), marks=FULL),
    pytest.param(("other-widths", 1), marks=FULL),
    pytest.param(("koala-tiny", 2), marks=FULL),
]
BOUND = 2 / 255
PROMPTS = ["a koala", "a large red circle", "two small blue squares"]
STRENGTHS = (0.2, 0.35, 0.6, 0.85, 1.0)
SAMPLERS = ("euler", "euler_a", "dpmpp_2m_karras", "unipc", "lcm", "heun", "dpm2_a", "dpmpp_2m_sde", "ddim", "plms")
OTHERS = ("dpm2", "lms", "ddpm", "dpmpp_3m", "dpmpp_2s", "dpmpp_sde", "deis", "tcd")
# numpy's and diffusers' own, of coming changes
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*:FutureWarning")


class Both:
    """diffusers' pipelines for pictures and for masks, and ours, of one checkpoint and batch."""

    def __init__(self, checkpoint: Path, ours: Pipeline) -> None:
        plain = open_reference(checkpoint)
        self.ours, self.own = ours, plain.scheduler
        self.theirs = {
            masked: cls(**plain.components, add_watermarker=False)
            for masked, cls in (
                (False, diffusers.StableDiffusionXLImg2ImgPipeline),
                (True, diffusers.StableDiffusionXLInpaintPipeline),
            )
        }
        for pipe in self.theirs.values():
            pipe.set_progress_bar_config(disable=True)
        self.size = (ours.manifest.profile.width, ours.manifest.profile.height)

    def picture(self, seed: int, size: tuple[int, int] | None = None) -> Image.Image:
        """A smooth picture with edges."""
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        picture = coarse.resize(size or self.size, Image.Resampling.BICUBIC)
        picture.paste((200, 30, 40), (8, 8, 30, 40))
        return picture

    def mask(self, size: tuple[int, int] | None = None) -> Image.Image:
        mask = Image.new("L", size or self.size, 0)
        mask.paste(255, (mask.width // 3, 5, mask.width - 7, mask.height - 11))
        return mask

    def difference(self, name: str, prompts: Any = PROMPTS[0], seed: int = 3, **call: Any) -> float:
        """Return the largest difference of any pixel, in [0, 1]."""
        theirs, named = self.theirs["mask_image" in call], NAMES[name]
        call = {"num_inference_steps": 6, "guidance_scale": 3.5, "output_type": "np", **call}
        size = dict(zip(("width", "height"), self.size, strict=True)) if "mask_image" in call else {}
        theirs.scheduler = getattr(diffusers, named.class_name).from_config(self.own.config, **named.keys)
        wanted = theirs(prompts, generator=torch.Generator().manual_seed(seed), **size, **call).images
        got = self.ours(prompts, seed=seed, scheduler=name, **call).images
        assert wanted.shape == got.shape
        return float(np.abs(wanted - got).max())


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda param: f"{param[0]}-{param[1]}")
def both(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]
) -> Iterator[Both]:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    shape, batch = request.param
    with Pipeline(bundle(shape, batch=batch, precision="fp32", encoder=True), "cpu") as ours:
        yield Both(checkpoint(shape), ours)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["euler", *(pytest.param(name, marks=FULL) for name in (*SAMPLERS[1:], *OTHERS))])
def test_every_strength(both: Both, name: str, strength: float, masked: bool) -> None:
    """More prompts than the batch, whose last run is not full."""
    prompts = PROMPTS[: both.ours.manifest.profile.batch + 1]
    call = {"mask_image": both.mask()} if masked else {}
    assert both.difference(name, prompts, image=both.picture(1), strength=strength, **call) <= BOUND


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SAMPLERS[1:])
def test_other_samplers(both: Both, name: str, masked: bool) -> None:
    call = {"mask_image": both.mask()} if masked else {}
    assert both.difference(name, image=both.picture(1), strength=0.6, **call) <= BOUND


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path], bundle: Callable[..., Path]) -> Iterator[Both]:
    with Pipeline(bundle(SHAPE, encoder=True), "cpu") as ours:
        yield Both(checkpoint(SHAPE), ours)
