"""What every sampler draws against diffusers' own pipeline with its own scheduler, in one bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline
from koala_runtime.samplers.names import SHORT, find

SHAPE, SIZE, GUIDANCE = "koala-700m-like", {"height": 64, "width": 96}, 3.5
PROMPTS = ["a koala", "a large red circle"]  # more than the batch
BOUND = 1e-4  # of the largest value
NAMES = (*SHORT, "dpmpp_2m_karras", "DPM++ 2M SDE Karras", "Euler a", "unipc_beta", "HeunDiscreteScheduler")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*:FutureWarning")  # diffusers'


@pytest.fixture(scope="module")
def theirs(checkpoint: Callable[[str], Path]) -> Any:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(checkpoint(SHAPE), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE), "cpu") as pipe:
        yield pipe


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "steps", [4, pytest.param(10, marks=pytest.mark.full), pytest.param(25, marks=pytest.mark.full)]
)
def test_pictures(theirs: Any, ours: Pipeline, name: str, steps: int) -> None:
    cls, keys = find(name)
    plain = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    theirs.scheduler = getattr(diffusers, cls).from_config(plain.config, **keys)
    both = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
    eta = {"eta": 0.3} if cls == "TCDScheduler" else {}
    wanted = theirs(PROMPTS, generator=torch.Generator().manual_seed(3), **SIZE, **both, **eta).images
    got = ours(PROMPTS, seed=3, scheduler=name, **both).images
    assert np.abs(wanted.numpy() - got).max() < BOUND * np.abs(got).max()
    theirs.scheduler = plain


def test_samplers_differ(ours: Pipeline) -> None:
    """By far more than the bound: a sampler in another's place would be seen."""
    same = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}
    drawn = [ours("a koala", scheduler=name, **same).images for name in SHORT]
    for index, latents in enumerate(drawn):
        for other in drawn[:index]:
            assert np.abs(latents - other).max() > 20 * BOUND * np.abs(latents).max()


def test_a_picture_with_noise_in_its_steps_is_drawn_again(ours: Pipeline) -> None:
    from koala_runtime.repeat import repeat_call, repeated_picture

    first = ours(PROMPTS, seed=5, num_inference_steps=4, scheduler="euler_a", return_dict=True)
    recipe = first.recipes[1]
    assert (recipe.scheduler, recipe.seed, recipe.index) == ("euler_a", 5, 1)
    again = ours(**repeat_call(recipe, ours.manifest))
    picture, made = repeated_picture(recipe, ours.manifest, again)
    assert np.array_equal(np.asarray(picture), np.asarray(first.images[1]))
    assert made == recipe


def test_an_unknown_sampler_is_refused(ours: Pipeline) -> None:
    with pytest.raises(
        ArgumentError, match=r"scheduler: expected a class of diffusers or euler or .*, found 'dpm_adap"
    ):
        ours("a koala", scheduler="dpm_adaptive")
    with pytest.raises(ArgumentError, match=r"scheduler: expected a name, found 7; pass one such as dpmpp_2m"):
        ours("a koala", scheduler=7)  # type: ignore[arg-type]
