"""What every sampler draws against diffusers' own pipeline with its own scheduler, in one bundle per checkpoint."""

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
from koala_runtime import DPMSolverMultistepScheduler, Pipeline, UniPCMultistepScheduler, read_recipe, to_png
from koala_runtime.repeat import repeat_call, repeated_picture
from koala_runtime.samplers import NAMES
from koala_runtime.samplers.names import STEMS
from tests.support.diffusers import open_reference

SHAPE = "koala-700m-like"
PROMPTS = ["a koala", "a large red circle", "two small blue squares"]
PICTURES, LATENTS = 2 / 255, 1e-4  # the second of the largest value
TRAINED = 2e-3
"""Of latents of a trained model with samplers that draw noise: it decides, so that a last bit can move an edge."""
FULL = pytest.mark.full
BUNDLES = [
    (SHAPE, 1),
    pytest.param((SHAPE, 2), marks=FULL),
    pytest.param(("other-widths", 1), marks=FULL),  # v_prediction
    pytest.param(("koala-tiny", 2), marks=FULL),
]
OTHERS = ("dpmpp_2m_karras", "DPM++ 2M SDE Karras", "unipc_beta", "dpm2_a_exponential")
# numpy's and diffusers' own, of coming changes
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda param: f"{param[0]}-{param[1]}")
def both(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]
) -> Iterator[tuple[Any, Pipeline]]:
    """diffusers' pipeline and ours of a checkpoint and a batch."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    shape, batch = request.param
    with Pipeline(bundle(shape, batch=batch, precision="fp32"), "cpu") as ours:
        yield open_reference(checkpoint(shape)), ours


def use(theirs: Any, name: str) -> None:
    """Give diffusers' pipeline the scheduler of a short name, as its documentation says."""
    named = next(each for short, each in NAMES.items() if name in (short, each.label))
    theirs.scheduler = getattr(diffusers, named.class_name).from_config(theirs.scheduler.config, **named.keys)


@pytest.mark.parametrize("name", [*STEMS, *OTHERS])
@pytest.mark.parametrize("steps", [4, pytest.param(10, marks=FULL), pytest.param(25, marks=FULL)])
def test_pictures(both: tuple[Any, Pipeline], name: str, steps: int) -> None:
    """More prompts than the batch, whose last run is not full."""
    theirs, ours = both
    profile, own = ours.manifest.profile, theirs.scheduler
    prompts = PROMPTS[: profile.batch + 1]
    call = {"num_inference_steps": steps, "guidance_scale": 3.5, "output_type": "latent"}
    size = {"height": profile.height, "width": profile.width}
    use(theirs, name)
    wanted = theirs(prompts, generator=torch.Generator().manual_seed(3), **size, **call).images
    theirs.scheduler = own
    got = ours(prompts, seed=3, scheduler=name, **call).images
    trained = (profile.height, profile.width) == (128, 128)
    assert np.abs(wanted.numpy() - got).max() < (TRAINED if trained else LATENTS) * np.abs(got).max()
    if steps > 4 or trained:
        drawn = ours(prompts, seed=3, scheduler=name, **{**call, "output_type": "np"}).images
        with torch.no_grad():
            decoded = theirs.vae.decode(wanted / theirs.vae.config.scaling_factor).sample
        pixels = theirs.image_processor.postprocess(decoded, output_type="np")
        assert np.abs(pixels - drawn).max() <= PICTURES


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path], bundle: Callable[..., Path]) -> Iterator[tuple[Any, Pipeline]]:
    """diffusers' pipeline and ours of one checkpoint."""
    with Pipeline(bundle(SHAPE), "cpu") as ours:
        yield open_reference(checkpoint(SHAPE)), ours


SPECIAL: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {"eta": 0.5}),
    ("tcd", {"eta": 0.3}),
    ("euler", {"timesteps": [999.0, 850.0, 401.5, 100.0]}),
    ("euler", {"sigmas": [14.6, 6.3, 1.3, 0.1, 0.0]}),
    ("heun", {"timesteps": [999, 400, 100]}),
    ("dpmpp_2m", {"timesteps": [999, 850, 736, 645, 24]}),
    ("lcm", {"timesteps": [999, 759, 499, 259]}),
    ("ddpm", {"timesteps": [900, 500, 100]}),
    ("heun", {"denoising_end": 0.7}),
]


@pytest.mark.parametrize(("name", "arguments"), SPECIAL)
def test_arguments_of_a_call(pair: tuple[Any, Pipeline], name: str, arguments: dict[str, Any]) -> None:
    theirs, ours = pair
    own, call = (
        theirs.scheduler,
        {"guidance_scale": 3.5, "output_type": "latent", "num_inference_steps": 4, **arguments},
    )
    use(theirs, name)
    wanted = theirs("a koala", generator=torch.Generator().manual_seed(3), height=64, width=96, **call).images
    theirs.scheduler = own
    got = ours("a koala", seed=3, scheduler=name, **call).images
    assert np.abs(wanted.numpy() - got).max() < LATENTS * np.abs(got).max()


@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpmpp_2m_sde"])
@pytest.mark.parametrize("alone", [False, True])
def test_generators_draw_the_noise_of_every_step(pair: tuple[Any, Pipeline], name: str, alone: bool) -> None:
    """One generator for all pictures, or one for each; both are then where diffusers leaves them."""
    theirs, ours = pair
    own, call = theirs.scheduler, {"guidance_scale": 3.5, "output_type": "latent", "num_inference_steps": 3}

    def generators() -> Any:
        made = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        return made if alone else made[0]

    use(theirs, name)
    first, second = generators(), generators()
    wanted = theirs(PROMPTS[:2], generator=first, height=64, width=96, **call).images
    theirs.scheduler = own
    got = ours(PROMPTS[:2], generator=second, scheduler=name, **call).images
    assert np.abs(wanted.numpy() - got).max() < LATENTS * np.abs(got).max()
    for one, other in zip(*(made if alone else [made] for made in (first, second)), strict=True):
        assert torch.equal(one.get_state(), other.get_state())


def test_the_scheduler_of_a_pipeline(pair: tuple[Any, Pipeline]) -> None:
    """Set as in diffusers, by a class, by diffusers' own object, by a name; calls can choose another."""
    theirs, ours = pair
    call = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}
    own = ours.scheduler
    wanted = ours("a koala", scheduler="dpmpp_2m_karras", **call).images
    euler = ours("a koala", **call).images
    try:
        for scheduler in (
            DPMSolverMultistepScheduler.from_config(own.config, use_karras_sigmas=True),
            diffusers.DPMSolverMultistepScheduler.from_config(theirs.scheduler.config, use_karras_sigmas=True),
            "dpmpp_2m_karras",
        ):
            ours.scheduler = scheduler  # type: ignore[assignment]
            assert np.array_equal(ours("a koala", **call).images, wanted)
            assert np.array_equal(ours("a koala", scheduler=own, **call).images, euler)
        with pytest.raises(ArgumentError, match=r"scheduler: expected a name, or a scheduler .*, found 7"):
            ours.scheduler = 7  # type: ignore[assignment]
        assert isinstance(ours.scheduler, DPMSolverMultistepScheduler)
    finally:
        ours.scheduler = own


def test_samplers_differ(pair: tuple[Any, Pipeline]) -> None:
    """By far more than the bound: a sampler in another's place would be seen."""
    drawn = {
        name: pair[1]("a koala", scheduler=name, seed=1, num_inference_steps=6, output_type="latent").images
        for name in STEMS
    }
    for index, (name, latents) in enumerate(drawn.items()):
        for other in [*drawn][:index]:
            assert np.abs(latents - drawn[other]).max() > 20 * LATENTS * np.abs(latents).max(), (name, other)


@pytest.mark.parametrize(
    "arguments",
    [
        {"scheduler": "euler_a", "num_inference_steps": 4},
        {"scheduler": "ddim", "eta": 0.5, "num_inference_steps": 4},
        {"scheduler": "heun", "timesteps": [999, 400, 100]},
        {"sigmas": [14.6, 6.3, 1.3, 0.1, 0.0]},
    ],
)
def test_a_picture_is_drawn_again(pair: tuple[Any, Pipeline], arguments: dict[str, Any], tmp_path: Path) -> None:
    """From its recipe as the file keeps it, whatever the pipeline's scheduler is by then."""
    ours = pair[1]
    own = ours.scheduler
    first = ours(PROMPTS[:2], seed=5, **arguments)
    (tmp_path / "picture.png").write_bytes(to_png(first.images[1], first.recipes[1]))
    recipe = read_recipe(tmp_path / "picture.png")
    assert recipe == first.recipes[1]
    ours.scheduler = UniPCMultistepScheduler.from_config(own.config)
    try:
        picture, made = repeated_picture(recipe, ours.manifest, ours(**repeat_call(recipe, ours.manifest)))
    finally:
        ours.scheduler = own
    assert np.array_equal(np.asarray(picture), np.asarray(first.images[1]))
    assert made == recipe


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"timesteps": "many"}, "timesteps: expected one or more numbers, found 'many'; pass a list, or leave it out"),
        ({"timesteps": [[9]]}, r"timesteps: expected one or more numbers, found \[\[9\]\]"),
        ({"sigmas": [9.0]}, "sigmas: expected two or more numbers, where the last is the end, found"),
        ({"sigmas": [9.0, float("nan")]}, "sigmas: expected two or more numbers"),
        ({"sigmas": [9.0, 0.0], "timesteps": [9]}, "sigmas: expected none with timesteps, found both; leave one of"),
        ({"timesteps": [100, 900]}, "timesteps: expected numbers from 999 down to 0, found"),
        ({"timesteps": [900], "scheduler": "unipc"}, "timesteps: expected none with UniPCMultistepScheduler, as in"),
        ({"eta": 2}, "eta: expected a number from 0 to 1, found 2"),
        (
            {"scheduler": "dpm_adaptive"},
            "scheduler: expected a class of diffusers, or euler, euler_a, .*'dpm_adaptive'",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(pair: tuple[Any, Pipeline], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pair[1]("a koala", **arguments)
