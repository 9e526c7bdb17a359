"""Every argument of diffusers' pipeline: taken, and then diffusers' picture to 2/255; or refused with what to do.

In float32 on the cpu target, with random weights; bundles with something compiled in are in ``test_compiled_in``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from koala_runtime import ArgumentError, Arguments, Pipeline, PipelineOutput, read_recipe, to_png
from koala_runtime.arguments import REFUSED
from koala_runtime.repeat import repeat_call, repeated_picture
from tests.docs.test_site import ROOT
from tests.support.diffusers import open_reference

# numpy tells diffusers' scheduler of a coming change; that is diffusers' to follow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = "koala-700m-like"
BOUND = 2 / 255
CAT = "a photo of a cat"
USUAL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.5}
DIFFUSERS = {*inspect.signature(StableDiffusionXLPipeline.__call__).parameters} - {"self", "kwargs"}
OURS = {
    "weighted",
    "seed",
    "callback_steps",
    "timings",
    "stream",
    "scheduler",
    "image",
    "mask_image",
    "strength",
    "mark",
    "on_image",
}


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Any:
    return open_reference(checkpoint(SHAPE))


@pytest.fixture(scope="module")
def ours(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE)) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeds(reference: Any, prompt: str, negative: str) -> dict[str, torch.Tensor]:
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        return dict(zip(names, reference.encode_prompt(prompt, negative_prompt=negative), strict=True))


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


# --- names


def test_every_argument_of_diffusers_is_taken_or_refused_by_name() -> None:
    """A new one in diffusers fails here: take it, or say in REFUSED why not."""
    taken = {*Arguments.__annotations__, "prompt"}
    assert DIFFUSERS - taken - REFUSED.keys() == set()
    assert taken - DIFFUSERS == OURS
    assert taken.isdisjoint(REFUSED)


def test_the_table_in_the_docs_says_the_same() -> None:
    page = (ROOT / "docs/from-diffusers.md").read_text("utf-8")
    section = page.partition("## Arguments of a call")[2].partition("\n## ")[0]
    rows = {name: row for row in section.splitlines() for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])}
    assert DIFFUSERS - rows.keys() == set()
    assert {name for name in DIFFUSERS if "not taken" in rows[name]} == DIFFUSERS & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_says_what_to_do(ours: Pipeline, name: str) -> None:
    expected, fix = REFUSED[name]
    with pytest.raises(ArgumentError) as caught:
        ours(CAT, **{name: [1.0]})  # type: ignore[misc]
    assert str(caught.value) == f"{name}: expected {expected}, found list; {fix}."
    assert ours(CAT, num_inference_steps=1, **{name: None}).images, "diffusers' default asks for nothing"  # type: ignore[misc]


def test_what_nobody_knows_is_a_type_error(ours: Pipeline) -> None:
    with pytest.raises(TypeError, match="takes no argument 'promt_2'"):
        ours(CAT, promt_2="a dog")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ours(CAT, "second")  # type: ignore[misc]  # in diffusers this is prompt_2


# --- pictures


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_2": "a dog on a hill"},
        {"prompt_2": ""},
        {"negative_prompt": "fog", "negative_prompt_2": "rain and snow"},
        {"negative_prompt": "", "negative_prompt_2": "rain and snow"},
        {"negative_prompt_2": "rain and snow"},
        {"num_images_per_prompt": 3, "negative_prompt": "fog"},
        {"original_size": (512, 768), "negative_original_size": (64, 64), "negative_target_size": (300, 400)},
        {
            "negative_original_size": (64, 64),
            "negative_target_size": (300, 400),
            "negative_crops_coords_top_left": (5, 7),
        },
        {"negative_original_size": (64, 64), "negative_crops_coords_top_left": (5, 7)},
        {"output_type": "latent"},
        {"denoising_end": 0.6},
        {"denoising_end": 0.3, "output_type": "latent"},
        {"eta": 0.5},
        {"timesteps": [999, 500, 300, 20]},
        {"sigmas": [14.6, 2.0, 0.2, 0.0]},
        {"clip_skip": 0, "guidance_rescale": 0.0, "height": None, "width": None, "callback_on_step_end": None},
    ],
    ids=lambda given: "-".join(given),
)
def test_the_picture_is_diffusers(reference: Any, ours: Pipeline, given: dict[str, Any]) -> None:
    arguments = USUAL | {"output_type": "np"} | given
    size = {"height": 64, "width": 96}
    wanted = np.asarray(reference(CAT, generator=seeded(), **arguments | size).images)
    got = ours(CAT, generator=seeded(), **arguments).images
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    assert np.abs(wanted - got).max() <= BOUND
    assert wanted.std() > 0.02
    if not given.keys() & {"prompt_2", "eta", "clip_skip", "negative_prompt_2"} and len(got) == 1:
        plain = ours(CAT, seed=0, **USUAL, output_type=arguments["output_type"]).images
        changes = bool(given.keys() & {"negative_target_size", "denoising_end", "timesteps", "sigmas"})
        assert (np.abs(plain - got).max() > 2 * BOUND) == changes, "what is given changes the picture"


def test_lists_of_prompts(reference: Any, ours: Pipeline) -> None:
    prompts, others = ["a cat", "a dog"], ["a red hill", "a blue lake"]
    arguments = USUAL | {"prompt_2": others, "negative_prompt": ["fog", "rain"], "num_images_per_prompt": 2}
    wanted = reference(prompts, generator=seeded(3), output_type="np", **arguments).images
    got = ours(prompts, generator=seeded(3), output_type="np", **arguments)
    assert np.abs(wanted - got.images).max() <= BOUND
    assert got.seed == 3
    assert [recipe.prompt for recipe in got.recipes] == ["a cat", "a cat", "a dog", "a dog"]


def test_one_generator_per_picture(reference: Any, ours: Pipeline) -> None:
    seeds = [5, 2**40 + 1, 5]
    arguments = USUAL | {"output_type": "np", "num_images_per_prompt": 3}
    wanted = reference(CAT, generator=[seeded(seed) for seed in seeds], **arguments).images
    got = ours(CAT, generator=[seeded(seed) for seed in seeds], **arguments)
    assert np.abs(wanted - got.images).max() <= BOUND
    assert (got.seed, [recipe.seed for recipe in got.recipes]) == (None, seeds)
    assert np.array_equal(ours(CAT, seed=seeds, **arguments).images, got.images)
    assert np.array_equal(got.images[0], got.images[2])


def test_a_generator_moves_on_as_in_diffusers(reference: Any, ours: Pipeline) -> None:
    """Two calls with the same generator draw two pictures; the second has no seed that could repeat it."""
    one, other = seeded(4), seeded(4)
    for seed in (4, None):
        wanted = reference(CAT, generator=one, output_type="np", **USUAL).images
        got = ours(CAT, generator=other, output_type="np", **USUAL)
        assert np.abs(wanted - got.images).max() <= BOUND
        assert got.seed == seed
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("left_out", [(), ("negative_prompt_embeds", "negative_pooled_prompt_embeds")])
def test_embeddings(reference: Any, ours: Pipeline, left_out: tuple[str, ...]) -> None:
    given = without(embeds(reference, "a red cat", "fog"), *left_out)
    wanted = reference(generator=seeded(), output_type="np", **USUAL, **given).images
    arguments: dict[str, Any] = {**USUAL, "output_type": "np", "seed": 0}
    assert np.abs(wanted - ours(**arguments, **given).images).max() <= BOUND  # type: ignore[arg-type]
    arrays = {name: value.numpy() for name, value in given.items()}
    assert np.abs(wanted - ours(**arguments, **arrays).images).max() <= BOUND
    halves = {name: value.bfloat16().requires_grad_() for name, value in given.items()}
    assert np.abs(wanted - ours(**arguments, **halves).images).max() > 0
    negative = {} if left_out else {"negative_prompt": "fog"}
    assert np.abs(wanted - ours("a red cat", **arguments, **negative).images).max() <= BOUND


def test_embeddings_beside_texts(reference: Any, ours: Pipeline) -> None:
    """Each side may be given either way, in batches, with a loop and with timings."""
    given = embeds(reference, "a red cat", "fog")
    positive = without(given, "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    negative = without(given, "prompt_embeds", "pooled_prompt_embeds")
    arguments: dict[str, Any] = {**USUAL, "output_type": "np", "seed": 0, "num_images_per_prompt": 2}
    texts = ours("a red cat", negative_prompt="fog", **arguments).images
    for one in (
        ours(negative_prompt="fog", **positive, **arguments),
        ours("a red cat", **negative, **arguments),
        ours("a red cat", **negative, **arguments, timings=True),
        ours("a red cat", **negative, **arguments, callback_on_step_end=lambda *_: {}),
    ):
        assert np.abs(texts - one.images).max() <= BOUND
        assert all(recipe.embeddings for recipe in one.recipes)
    with pytest.raises(ArgumentError, match="prompt: expected none beside prompt_embeds, found 'a cat'"):
        ours("a cat", **given)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="pooled_prompt_embeds: expected the pooled embeddings that come with"):
        ours(prompt_embeds=given["prompt_embeds"])
    with pytest.raises(ArgumentError, match=r"prompt_embeds: expected shape \[1, 77, 96\], found \[1, 154, 96\]"):
        ours(**given | {"prompt_embeds": given["prompt_embeds"].repeat(1, 2, 1)})  # type: ignore[arg-type]


def test_a_tuple_instead_of_an_object(ours: Pipeline) -> None:
    (images,) = cast("tuple[Any]", ours(CAT, seed=0, num_inference_steps=1, return_dict=False))
    assert images[0].tobytes() == ours(CAT, seed=0, num_inference_steps=1).images[0].tobytes()


def test_latents_of_torch(ours: Pipeline) -> None:
    noise = torch.randn(1, 4, 8, 12, generator=seeded()).requires_grad_()
    images = [ours(CAT, **given, output_type="np", **USUAL).images for given in ({"latents": noise}, {"seed": 0})]
    assert np.abs(images[0] - images[1]).max() <= BOUND


def test_a_latent_picture_decodes_to_the_picture(reference: Any, ours: Pipeline) -> None:
    """What ``latent`` returns is what diffusers' own VAE takes."""
    latents = torch.from_numpy(ours(CAT, seed=0, output_type="latent", **USUAL).images)
    with torch.no_grad():
        decoded = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample
    pixels = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels - ours(CAT, seed=0, output_type="np", **USUAL).images).max() <= BOUND


# --- recipes


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_2": "a dog", "negative_prompt": "fog", "negative_prompt_2": "rain"},
        {"negative_original_size": (64, 64), "negative_target_size": (300, 400)},
        {"denoising_end": 0.6, "num_images_per_prompt": 2},
        {"num_images_per_prompt": 3, "seed": [7, 8, 9]},
    ],
    ids=lambda given: "-".join(given),
)
def test_a_recipe_draws_the_picture_again(ours: Pipeline, tmp_path: Path, given: dict[str, Any]) -> None:
    output = ours(CAT, **{"seed": 7} | USUAL | given)
    path = tmp_path / "picture.png"
    path.write_bytes(to_png(output.images[-1], output.recipes[-1]))
    recipe = read_recipe(path)
    again: PipelineOutput = ours(**repeat_call(recipe, ours.manifest))
    image, made = repeated_picture(recipe, ours.manifest, again)
    assert to_png(image, made) == path.read_bytes()


# --- what is wrong


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"height": 128}, "height: expected 96 x 64 px (width x height), the size of this bundle, found 128; "),
        ({"clip_skip": 1}, "clip_skip: expected 0, which is compiled in, found 1; leave it out, or export the bundle"),
        ({"guidance_rescale": 0.7}, "guidance_rescale: expected 0 in a bundle that was exported without it, found 0.7"),
        ({"guidance_rescale": 2}, "guidance_rescale: expected a number from 0 to 1, found 2; "),
        ({"denoising_end": 1e-4}, "denoising_end: expected a share that leaves a step to draw, found 0.0001; "),
        ({"denoising_end": "half"}, "denoising_end: expected a number from 0 to 1, found 'half'; "),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: expected 1 or more, found 0; "),
        ({"generator": 7}, "generator: expected a torch generator, or a list of them, found int; pass a whole number "),
        ({"generator": [seeded()] * 2}, "generator: expected 1, one per picture, found 2; pass one, or one per "),
        ({"seed": [1, 2]}, "seed: expected 1, one per picture, found 2; pass one, or one per picture."),
        ({"seed": 1, "generator": seeded()}, "seed: expected none beside a generator, found 1; leave one of them out."),
        ({"seed": "7"}, "seed: expected a whole number, found '7'; pass an int, or None."),
        ({"prompt_2": ["a", "b"]}, "prompt_2: expected 1, one per prompt, found 2; "),
        ({"prompt_2": 7}, "prompt_2: expected text, or a list of texts, found 7; "),
        ({"output_type": "pt"}, "output_type: expected pil or np or latent or device, found 'pt'; pass np, and torch."),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs: expected "),
    ],
)
def test_a_value_that_cannot_be_drawn(ours: Pipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ours(CAT, **given)
    assert str(caught.value).startswith(said)
