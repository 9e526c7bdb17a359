"""The same seed gives the picture that diffusers gives, to 2/255, in float32 on the cpu target.

Four random-weight checkpoints of different shape, saved by diffusers; what the shapes cover is in
``tests.support.checkpoints`` (mid block or none, epsilon and v_prediction, upcast VAE, zeroed or encoded negatives).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koala_runtime import Pipeline
from tests.support.checkpoints import SHAPES
from tests.support.diffusers import open_reference

# numpy tells diffusers' scheduler of a coming change; that is diffusers' to follow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOUND = 2 / 255
PROMPTS = [
    "a photo of a cat",
    "Wow! A cat!! Really?! !",
    "crème brûlée à la plage, naïve façade, Ångström",
    "🐨 asleep in a 🌿 tree 🎉🎉",
    "一只考拉在树上睡觉 コアラが木の上で眠る",
    "a very long description of a koala, " * 20,
    "",
]


def quick(*names: str) -> list[Any]:
    """All shapes, the others than these for the full tests: an export of each takes half a minute."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.full) for name in SHAPES]


@pytest.fixture(scope="module", params=quick("koala-700m-like", "other-widths"))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(shape: str, checkpoint: Callable[[str], Path]) -> Any:
    """diffusers' own pipeline on the checkpoint."""
    return open_reference(checkpoint(shape))


@pytest.fixture(scope="module")
def ours(shape: str, bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(shape)) as pipeline:
        yield pipeline


def difference(
    reference: Any, ours: Pipeline, prompt: Any, negative: Any = None, seed: int = 0, **arguments: Any
) -> float:
    """Largest difference of any pixel, in [0, 1]."""
    import torch

    profile = ours.manifest.profile
    wanted = reference(
        prompt,
        negative_prompt=negative,
        generator=torch.Generator().manual_seed(seed),
        height=profile.height,
        width=profile.width,
        output_type="np",
        **arguments,
    ).images
    got = ours(prompt, negative_prompt=negative, seed=seed, output_type="np", **arguments).images
    assert wanted.shape == got.shape
    assert wanted.std() > 0.02, "the reference is one flat colour; comparing it proves nothing"
    return float(np.abs(wanted - got).max())


@pytest.mark.parametrize("steps", [1, 4, 10, 25])
def test_every_number_of_steps(reference: Any, ours: Pipeline, steps: int) -> None:
    assert difference(reference, ours, PROMPTS[0], num_inference_steps=steps, guidance_scale=3.5) <= BOUND


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("negative", [None, "", "worst quality!"])
def test_guidance_and_negative_prompts(
    reference: Any, ours: Pipeline, negative: str | None, guidance_scale: float
) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    assert difference(reference, ours, PROMPTS[0], negative, seed=1, **arguments) <= BOUND


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_kind_of_prompt(reference: Any, ours: Pipeline, prompt: str) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}
    assert difference(reference, ours, prompt, prompt[::-1], seed=2, **arguments) <= BOUND


def test_a_list_of_prompts_on_a_batch_of_one(reference: Any, ours: Pipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.5}
    assert difference(reference, ours, PROMPTS[:3], PROMPTS[3:6], seed=3, **arguments) <= BOUND


def test_micro_conditioning(reference: Any, ours: Pipeline) -> None:
    sizes: dict[str, Any] = {"original_size": (512, 768), "crops_coords_top_left": (16, 32), "target_size": (256, 128)}
    assert difference(reference, ours, PROMPTS[0], seed=4, num_inference_steps=4, guidance_scale=3.5, **sizes) <= BOUND


def test_given_latents(reference: Any, ours: Pipeline) -> None:
    import torch

    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.5, "output_type": "np"}
    wanted = reference(PROMPTS[:2], latents=noise, height=64, width=96, **arguments).images
    got = ours(PROMPTS[:2], latents=noise.numpy(), **arguments).images
    assert np.abs(wanted - got).max() <= BOUND


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("shape", quick("koala-700m-like"), indirect=True)
def test_every_spacing_on_a_batch_of_two(shape: str, reference: Any, bundle: Callable[..., Path], spacing: str) -> None:
    """One batch-2 bundle per shape; the spacing is a table and needs no other graph."""
    from diffusers import EulerDiscreteScheduler

    with Pipeline(bundle(shape, batch=2)) as pipeline:
        own = pipeline.scheduler
        pipeline.scheduler = type(own).from_config(own.config, timestep_spacing=spacing)
        before = reference.scheduler
        reference.scheduler = EulerDiscreteScheduler.from_config(before.config, timestep_spacing=spacing)
        try:
            for steps in (1, 4, 10, 25):
                arguments: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.5}
                assert difference(reference, pipeline, PROMPTS[:2], PROMPTS[2], seed=6, **arguments) <= BOUND
            # Three prompts on a batch of two: the second run is padded, and its padding is dropped.
            assert difference(reference, pipeline, PROMPTS[:3], seed=7, **arguments) <= BOUND
        finally:
            reference.scheduler = before


@pytest.mark.parametrize("shape", ["koala-700m-like"], indirect=True)
def test_a_bundle_without_guidance(shape: str, reference: Any, bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle(shape, cfg=False)) as pipeline:
        assert pipeline.manifest.profile.rows == 1
        arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 0.0}
        assert difference(reference, pipeline, PROMPTS[0], seed=8, **arguments) <= BOUND


def test_the_comparison_can_fail(reference: Any, ours: Pipeline) -> None:
    """What the tests above hold equal changes the picture by more than their bound when it is not."""
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5, "output_type": "np", "seed": 0}
    picture = ours(PROMPTS[0], negative_prompt="", **arguments).images
    for changed in (
        ours("", negative_prompt=PROMPTS[0], **arguments),
        ours(PROMPTS[0] + "!", negative_prompt="", **arguments),
        ours(PROMPTS[0], negative_prompt="", **(arguments | {"guidance_scale": 6.0})),
        ours(PROMPTS[0], negative_prompt="", **(arguments | {"num_inference_steps": 5})),
        ours(PROMPTS[0], negative_prompt="", **arguments, original_size=(512, 512)),
        ours(PROMPTS[0], negative_prompt="", **arguments, crops_coords_top_left=(16, 16)),
    ):
        assert np.abs(changed.images - picture).max() > 2 * BOUND
