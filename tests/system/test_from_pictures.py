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

from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline
from koala_runtime.pictures import read_source
from koala_runtime.repeat import check_repeatable
from koala_runtime.samplers import NAMES
from tests.support.diffusers import open_reference

SHAPE = "koala-700m-like"
FULL = pytest.mark.full
BUNDLES = ((SHAPE, 1), (SHAPE, 2), ("other-widths", 1), ("koala-tiny", 2))  # the third predicts v
BOUND, LATENTS = 2 / 255, 1e-4
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
        """Return the largest difference of any pixel, in [0, 1], or of latents in parts of the largest."""
        theirs, named = self.theirs["mask_image" in call], NAMES[name]
        call = {"num_inference_steps": 6, "guidance_scale": 3.5, "output_type": "np", **call}
        size = dict(zip(("width", "height"), self.size, strict=True)) if "mask_image" in call else {}
        theirs.scheduler = getattr(diffusers, named.class_name).from_config(self.own.config, **named.keys)
        wanted = theirs(prompts, generator=torch.Generator().manual_seed(seed), **size, **call).images
        got = self.ours(prompts, seed=seed, scheduler=name, **call).images
        assert wanted.shape == got.shape
        scale = np.abs(got).max() if call["output_type"] == "latent" else 1.0
        return float(np.abs(np.asarray(wanted) - got).max() / scale)


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]
) -> Iterator[Both]:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    shape, batch = request.param
    with Pipeline(bundle(shape, batch=batch, precision="fp32", encoder=True), "cpu") as ours:
        yield Both(checkpoint(shape), ours)


def pairs() -> Iterator[Any]:
    """Yield bundles with samplers; all samplers where the model is smallest."""
    for which, (shape, batch) in enumerate(BUNDLES):
        for name in (*SAMPLERS, *OTHERS) if shape == SHAPE else SAMPLERS[:3]:
            marks = () if which == 0 and name == "euler" else (FULL,)
            yield pytest.param((shape, batch), name, marks=marks, id=f"{shape}-{batch}-{name}")


@pytest.mark.parametrize(("both", "name"), [*pairs()], indirect=["both"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_strength(both: Both, name: str, strength: float, masked: bool) -> None:
    """More prompts than the batch, whose last run is not full."""
    prompts = PROMPTS[: both.ours.manifest.profile.batch + 1]
    call = {"mask_image": both.mask()} if masked else {}
    assert both.difference(name, prompts, image=both.picture(1), strength=strength, **call) <= BOUND


@pytest.mark.parametrize("both", BUNDLES[:1], indirect=True)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SAMPLERS[1:])
def test_other_samplers(both: Both, name: str, masked: bool) -> None:
    call = {"mask_image": both.mask()} if masked else {}
    assert both.difference(name, image=both.picture(1), strength=0.6, output_type="latent", **call) <= LATENTS


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path], bundle: Callable[..., Path]) -> Iterator[Both]:
    with Pipeline(bundle(SHAPE, encoder=True), "cpu") as ours:
        yield Both(checkpoint(SHAPE), ours)


def test_pictures_of_each_prompt(pair: Both) -> None:
    """Lists of pictures and masks, several pictures of each prompt, and a generator for each."""
    pictures = [pair.picture(1), pair.picture(2)]
    assert pair.difference("euler_a", PROMPTS[:2], image=pictures, strength=0.6) <= BOUND
    masks = {"mask_image": [pair.mask(), pair.mask().rotate(180)]}
    assert pair.difference("euler_a", PROMPTS[:2], image=pictures, strength=0.6, **masks) <= BOUND
    several = {"num_images_per_prompt": 2, "image": pictures[0], "strength": 0.6}
    assert pair.difference("euler", **several) <= BOUND
    theirs, call = pair.theirs[False], {"num_inference_steps": 5, "strength": 0.6, "output_type": "np"}
    theirs.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pair.own.config)
    generators = [[torch.Generator().manual_seed(seed) for seed in (5, 6)] for _ in range(2)]
    wanted = theirs(PROMPTS[:2], image=pictures[0], generator=generators[0], guidance_scale=3.5, **call).images
    call |= {"guidance_scale": 3.5, "scheduler": "euler_a", "image": pictures[0]}
    assert np.abs(wanted - pair.ours(PROMPTS[:2], generator=generators[1], **call).images).max() <= BOUND
    assert np.array_equal(
        pair.ours(PROMPTS[:2], seed=[5, 6], **call).images[1], pair.ours(PROMPTS[1], seed=6, **call).images[0]
    )


def test_a_picture_of_another_size_is_resized(pair: Both) -> None:
    large = {"image": pair.picture(1, (201, 133)), "mask_image": pair.mask((201, 133))}
    assert pair.difference("euler", strength=0.7, **large) <= BOUND


def test_kinds_of_pictures(pair: Both) -> None:
    """Arrays of levels and of shares, in both orders, and tensors are the picture that they show."""
    picture, mask = pair.picture(1).convert("RGBA"), pair.mask()
    levels, cover = np.asarray(pair.picture(1)), np.asarray(mask)
    call: dict[str, Any] = {"num_inference_steps": 3, "strength": 0.7, "seed": 1, "output_type": "np"}
    wanted = pair.ours("a koala", image=picture, mask_image=mask, **call).images
    shares = levels.astype(np.float32) / 255
    for image, covered in (
        (levels, cover),
        (shares, cover > 127),
        ([picture], [mask]),
        (shares[None], cover[None] / 255),
        (torch.from_numpy(shares.transpose(2, 0, 1).copy())[None], torch.from_numpy(cover / 255)[None, None]),
        ([levels], [cover[..., None]]),
    ):
        assert np.array_equal(pair.ours("a koala", image=image, mask_image=covered, **call).images, wanted)


def test_masks_as_diffusers_reads_them(pair: Both) -> None:
    """Arrays of 0 and 1 of any type, levels of uint8 of which all but 0 paint, and PIL pictures of other modes."""
    cover = (np.asarray(pair.mask()) > 127).astype(np.uint8)
    faint = cover * np.uint8(40)
    clear = Image.merge("RGBA", [pair.mask((57, 33))] * 3 + [Image.new("L", (57, 33), 90)])
    picture = pair.picture(1)
    for mask in (cover, faint, cover.astype(np.float32) * 0.6, clear, pair.mask((57, 33)).convert("1")):
        assert pair.difference("euler", image=picture, strength=0.7, mask_image=mask, num_inference_steps=3) <= BOUND
    call: dict[str, Any] = {"num_inference_steps": 3, "strength": 0.7, "seed": 1, "output_type": "np"}
    painted = pair.ours("a koala", image=picture, mask_image=cover, **call).images
    for same in (faint, cover.astype(np.int64), cover > 0, torch.from_numpy(cover)):
        assert np.array_equal(pair.ours("a koala", image=picture, mask_image=same, **call).images, painted)
    nothing = pair.ours("a koala", image=picture, mask_image=cover * 0, **call).images
    assert np.abs(painted - nothing).max() > 0.1


def test_masks_of_every_mode_are_those_of_diffusers(pair: Both) -> None:
    """To the pixel, from noise and gradients that any other threshold, or order of resizing and converting, changes."""
    width, height = pair.size
    shares = np.random.default_rng(7).random((height, width))
    levels = (shares * 255 * (shares > 0.2)).astype(np.uint8)
    coloured = pair.picture(5, (77, 53))
    faded = coloured.copy()
    faded.putalpha(Image.linear_gradient("L").resize(coloured.size))
    kinds: list[Any] = [levels, shares, shares.astype(np.float16)[..., None], [levels[..., None]]]
    kinds += [torch.from_numpy(levels), torch.from_numpy(shares)[None, None]]
    kinds += [coloured.convert(mode) for mode in ("L", "1", "P", "RGB")] + [faded, faded.convert("LA")]
    for kind in kinds:
        theirs = pair.theirs[True].mask_processor.preprocess(kind, height=height, width=width)
        wanted = torch.nn.functional.interpolate(theirs.float(), size=(height // 8, width // 8)).numpy()
        source = read_source(pair.ours.manifest, 1, {"image": coloured, "mask_image": kind})
        assert source is not None
        assert 0 < wanted.mean() < 1
        assert np.array_equal(source.mask, wanted), getattr(kind, "mode", kind)  # type: ignore[arg-type]


def generated(pair: Both, prompts: list[str], generators: Callable[[], Any], **call: Any) -> float:
    """Return the largest difference of any pixel where torch generators draw."""
    theirs = pair.theirs["mask_image" in call]
    theirs.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pair.own.config)
    call = {"num_inference_steps": 5, "strength": 0.6, "guidance_scale": 3.5, "output_type": "np", **call}
    size = dict(zip(("width", "height"), pair.size, strict=True)) if "mask_image" in call else {}
    wanted = theirs(prompts, generator=generators(), **size, **call).images
    return float(np.abs(wanted - pair.ours(prompts, generator=generators(), scheduler="euler_a", **call).images).max())


def test_the_order_in_which_generators_draw(pair: Both) -> None:
    """One picture of several prompts, several masks of one picture, and one generator twice in a list."""

    def two() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    def twice() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(5)] * 2

    prompts, picture = PROMPTS[:2], pair.picture(1)
    masks = [pair.mask(), pair.mask().rotate(180)]
    for generators in (two, twice):
        assert generated(pair, prompts, generators, image=picture) <= BOUND
        assert generated(pair, prompts, generators, image=picture, mask_image=masks[0]) <= BOUND
    assert generated(pair, prompts, two, image=picture, mask_image=masks) <= BOUND
    assert generated(pair, prompts, lambda: two()[0], image=picture, mask_image=masks) <= BOUND


def test_shares_of_steps_as_diffusers_counts_them(pair: Both) -> None:
    """Of own timesteps, Heun's are its evaluations; a share in float32 is rounded before it is cut."""
    picture = pair.picture(1)
    heun = {"timesteps": [901, 701, 501, 301, 101], "num_inference_steps": 5}
    for strength in (0.6, 0.7, 0.95):
        assert pair.difference("heun", image=picture, strength=strength, **heun) <= BOUND
    with pytest.raises(ArgumentError, match="strength: expected a share that leaves one of 9 steps"):
        pair.ours("a koala", image=picture, strength=0.5, scheduler="heun", timesteps=heun["timesteps"])
    share = np.float32(0.7)
    assert int(10 * share) != int(10 * float(share))
    assert pair.difference("euler", image=picture, strength=share, num_inference_steps=10) <= BOUND


def test_sizes_of_the_negative_prompt(pair: Both) -> None:
    sizes: dict[str, Any] = {"crops_coords_top_left": (8, 16), "original_size": (100, 120)}
    for given in ({}, {"negative_original_size": (32, 32)}, {"negative_target_size": (500, 20)}):
        assert pair.difference("euler", image=pair.picture(1), strength=0.7, **sizes, **given) <= BOUND


def test_what_is_kept_and_what_is_painted(pair: Both) -> None:
    """A negative control: without the mask, with another picture or strength, the picture is another one."""
    plain: dict[str, Any] = {"num_inference_steps": 6, "seed": 1, "output_type": "latent"}
    call = {**plain, "image": pair.picture(1), "strength": 0.6, "mask_image": pair.mask()}
    before = pair.ours("a koala", **plain).images
    wanted = pair.ours("a koala", **call).images
    for change in ({"mask_image": None}, {"image": pair.picture(2)}, {"strength": 0.9}, {"seed": 2}):
        other = pair.ours("a koala", **{**call, **change}).images
        assert np.abs(other - wanted).max() > 100 * LATENTS * np.abs(wanted).max()
    assert np.array_equal(pair.ours("a koala", **plain).images, before), "no mask is left"


def test_the_same_bundle_draws_from_noise(pair: Both, bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle(SHAPE), "cpu") as without:
        call: dict[str, Any] = {"num_inference_steps": 4, "seed": 1, "output_type": "np", "scheduler": "euler_a"}
        assert np.abs(pair.ours("a koala", **call).images - without("a koala", **call).images).max() < 1e-5
        with pytest.raises(ArgumentError, match=r"image: expected a bundle with the VAE's encoder, found one without"):
            without("a koala", image=pair.picture(1))


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_a"])
def test_on_the_simulated_gpu(pair: Both, bundle: Callable[..., Path], name: str) -> None:
    """Between pictures without a picture, and twice, so that graphs are captured."""
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "np", "scheduler": name}
    from_picture = {"image": pair.picture(1), "strength": 0.8}
    with Pipeline(bundle(SHAPE, encoder=True), "simulated") as gpu:
        for seed in (1, 2, 1):
            for source in ({}, from_picture, {**from_picture, "mask_image": pair.mask()}):
                wanted = pair.ours("a koala", seed=seed, **source, **call).images
                assert np.array_equal(gpu("a koala", seed=seed, **source, **call).images, wanted)
        with gpu.steps("a koala", seed=1, **from_picture, **call) as steps:
            seen = [step.timestep for step in steps]
        assert len(seen) == 3
        assert np.array_equal(steps.output.images, pair.ours("a koala", seed=1, **from_picture, **call).images)


def test_the_recipe_names_the_picture(pair: Both) -> None:
    call: dict[str, Any] = {"image": pair.picture(1), "strength": 0.5, "num_inference_steps": 4, "seed": 1}
    recipe = pair.ours("a koala", **call).recipes[0]
    assert recipe.strength == 0.5
    assert recipe.mask_image is None
    assert recipe.image == pair.ours("a koala", **call).recipes[0].image
    assert recipe.image != pair.ours("a koala", **{**call, "image": pair.picture(2)}).recipes[0].image
    with pytest.raises(
        ArgumentError, match=r"image: expected a picture that began with noise, found one that began with"
    ):
        check_repeatable(recipe, recipe.bundle, Path("koala.png"), Path("bundle"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"strength": 0.5}, "strength: expected an image, too, found none; pass image, or leave this out"),
        ({"mask_image": np.ones((64, 96))}, "mask_image: expected an image, too, found none"),
        ({"image": np.zeros((64, 96, 3)), "strength": 1.5}, "strength: expected a number from 0 to 1, found 1.5"),
        ({"image": np.zeros((64, 96, 3)), "strength": 0.1}, "strength: expected a share that leaves one of 4 steps"),
        ({"image": np.zeros((64, 64, 3))}, r"image: expected shape \[64, 96, 3\], or a PIL picture, .* \[64, 64, 3\]"),
        ({"image": np.full((64, 96, 3), 7.0)}, "image: expected values from 0 to 1, or uint8, found others; divide by"),
        ({"image": "koala.png"}, "image: expected a PIL picture, an array of one or more, or a list, found str"),
        ({"image": [torch.zeros(64, 96, 3, dtype=torch.bfloat16)]}, "image: expected a PIL picture, .* found Tensor"),
        ({"image": {}}, "image: expected a PIL picture, .* found dict"),
        ({"image": []}, "image: expected a PIL picture, .* found list"),
        ({"image": np.zeros((0, 64, 96, 3))}, "image: expected a PIL picture, .* found ndarray"),
        ({"image": [None]}, "image: expected a PIL picture, .* found NoneType"),
        ({"image": Image.new("I;16", (96, 64))}, "image: expected a picture of 8 bits per channel, found .* I;16"),
        ({"image": np.zeros((64, 96, 3)), "mask_image": np.zeros((0, 64, 96))}, "mask_image: expected a PIL picture"),
        ({"image": np.zeros((64, 96, 3)), "mask_image": np.full((64, 96), np.nan)}, "mask_image: expected 0 or 1"),
        ({"image": [np.zeros((64, 96, 3))] * 2}, "image: expected one, or a number that divides 1 pictures, found 2"),
        (
            {"image": np.zeros((64, 96, 3)), "mask_image": np.zeros((8, 8))},
            r"mask_image: expected shape \[64, 96\], or a PIL",
        ),
        ({"image": np.zeros((64, 96, 3)), "latents": np.zeros((1, 4, 8, 12))}, "latents: expected none beside image"),
        ({"padding_mask_crop": 8}, "padding_mask_crop: expected the whole picture, found int; crop the picture and"),
        ({"denoising_start": 0.5}, "denoising_start: expected strength, which begins later"),
    ],
)
def test_what_cannot_be_painted_is_refused(pair: Both, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pair.ours("a koala", **{"num_inference_steps": 4, **arguments})
