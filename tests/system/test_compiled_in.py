"""What an export compiles in: chunks of prompts, skipped layers, rescaled guidance, learned words; and weights in each.

The reference is diffusers' own pipeline, given embeddings that are computed here with its tokenizers and text encoders,
as compel and diffusers' community pipelines do; texts and their weights are spelt out beside each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from koala_bundle.manifest import TOKENIZERS
from koala_runtime import ArgumentError, Pipeline, read_recipe, to_png
from koala_runtime.repeat import repeat_call, repeated_picture
from koala_verify.verify import verify
from tests.support.bundles import learned_words
from tests.support.diffusers import open_reference

# numpy tells diffusers' scheduler of a coming change; that is diffusers' to follow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = "koala-700m-like"
BOUND = 2 / 255
USUAL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.5, "output_type": "np"}
BUNDLES: dict[int, dict[str, Any]] = {
    1: {},
    2: {"prompt_chunks": 2, "guidance_rescale": True, "batch": 2},
    3: {"prompt_chunks": 3, "clip_skip": 1, "embeddings": learned_words(SHAPE)},
}
"""By number of chunks; few bundles, each with several things compiled in."""

Fragments = Sequence[tuple[str, float]]
Prompt = Fragments | dict[str, str]
"""Text with weights, or a text for each tokenizer."""
LONG = "a very long description of a koala, asleep in a eucalyptus tree! " * 12
WEIGHED: list[tuple[str, Fragments]] = [
    ("a (red:1.4) cat on a [hill]", [("a ", 1), ("red", 1.4), (" cat on a ", 1), ("hill", 1 / 1.1)]),
    ("((wow!)), a cat (far away:0)", [("wow!", 1.1 * 1.1), (", a cat ", 1), ("far away", 0)]),
    (
        r"a \(cat\) (in (snow:1.5) [and fog]",
        [("a (cat) ", 1), ("in ", 1.1), ("snow", 1.65), (" ", 1.1), ("and fog", 1)],
    ),
    (f"(koala:1.3) {LONG}", [("koala", 1.3), (f" {LONG}", 1)]),
]


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Any:
    return open_reference(checkpoint(SHAPE))


@pytest.fixture(scope="module")
def learned(checkpoint: Callable[[str], Path]) -> Any:
    """diffusers with the learned words, loaded as its documentation says for SDXL."""
    pipeline = open_reference(checkpoint(SHAPE))
    both, one = learned_words(SHAPE)
    first = {"text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer}
    second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
    pipeline.load_textual_inversion(load_file(both)["clip_l"], token="zebrastyle", **first)
    pipeline.load_textual_inversion(load_file(both)["clip_g"], token="zebrastyle", **second)
    pipeline.load_textual_inversion(str(one.parent), weight_name=one.name, **second)
    return pipeline


@pytest.fixture(scope="module", params=BUNDLES)
def ours(request: pytest.FixtureRequest, bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE, **BUNDLES[request.param])) as pipeline:
        yield pipeline


@torch.no_grad()
def encode(reference: Any, prompt: Prompt, chunks: int, clip_skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompt and pooled embeddings; the distance of a token from its chunk's end of text takes the weight."""
    both = []
    for name, encoder in zip(TOKENIZERS, (reference.text_encoder, reference.text_encoder_2), strict=True):
        tokenizer = getattr(reference, name)
        fragments = [(prompt[name], 1.0)] if isinstance(prompt, dict) else prompt
        pieces = [(tokenizer(text, add_special_tokens=False).input_ids, weight) for text, weight in fragments]
        tokens = [(token, weight) for ids, weight in pieces for token in ids]
        rows = []
        for start in range(0, 75 * chunks, 75):
            chunk = tokens[start : start + 75]
            ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (77 - len(ids))
            output = encoder(torch.tensor([ids]), output_hidden_states=True)
            states = output.hidden_states[-2 - clip_skip][0].clone()
            for place, (_, weight) in enumerate(chunk, 1):
                states[place] = states[len(chunk) + 1] + weight * (states[place] - states[len(chunk) + 1])
            rows.append((states, output[0]))
        both.append(torch.cat([states for states, _ in rows])[None])
        pooled = rows[0][1]
    return torch.cat(both, -1), pooled


def draw(reference: Any, chunks: int, prompt: Prompt, negative: Fragments, **arguments: Any) -> Any:
    """Draw with diffusers; it never skips layers of a negative prompt."""
    embeds, pooled = encode(reference, prompt, chunks, arguments.pop("clip_skip", 0))
    negative_embeds, negative_pooled = encode(reference, negative, chunks)
    return reference(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative_embeds,
        negative_pooled_prompt_embeds=negative_pooled,
        generator=torch.Generator().manual_seed(0),
        height=64,
        width=96,
        **arguments,
    ).images


def usual(pipeline: Pipeline) -> dict[str, Any]:
    """What both pipelines are given for this bundle."""
    profile = pipeline.manifest.profile
    return USUAL | {"clip_skip": profile.clip_skip, "guidance_rescale": 0.7 if profile.guidance_rescale else 0.0}


@pytest.mark.parametrize("prompt", ["a cat", LONG[:600], LONG, f"{LONG}{LONG}"], ids=["short", "2", "3", "cut"])
def test_chunks(reference: Any, ours: Pipeline, prompt: str) -> None:
    chunks, arguments = ours.manifest.profile.prompt_chunks, usual(ours)
    wanted = draw(reference, chunks, [(prompt, 1)], [("fog! " * 80, 1)], **arguments)
    got = ours(prompt, negative_prompt="fog! " * 80, seed=0, **arguments).images
    assert np.abs(wanted - got).max() <= BOUND
    if chunks > 1 and len(prompt) > len(LONG):
        short = ours(prompt[:300], negative_prompt="fog! " * 80, seed=0, **arguments).images
        assert np.abs(short - got).max() > 2 * BOUND, "what is in later chunks counts"


@pytest.mark.parametrize(("prompt", "fragments"), WEIGHED, ids=range(len(WEIGHED)))
def test_weights(reference: Any, ours: Pipeline, prompt: str, fragments: Fragments) -> None:
    chunks, arguments = ours.manifest.profile.prompt_chunks, usual(ours)
    negative: Fragments = [("fog", 0.5), (" and rain", 1)]
    wanted = draw(reference, chunks, fragments, negative, **arguments)
    weighted = {"negative_prompt": "(fog:0.5) and rain", "weighted": True}
    got = ours(prompt, seed=0, **weighted, **arguments)
    assert np.abs(wanted - got.images).max() <= BOUND
    plain = [(text, 1.0) for text, _ in fragments]
    assert np.abs(draw(reference, chunks, plain, negative, **arguments) - got.images).max() > BOUND / 4
    assert got.recipes[0].weighted


def test_brackets_are_text_without_the_switch(reference: Any, bundle: Callable[..., Path]) -> None:
    prompt = WEIGHED[0][0]
    with Pipeline(bundle(SHAPE)) as pipeline:
        got = pipeline(prompt, seed=0, **USUAL).images
        plain, weighted = (pipeline("a cat", weighted=switch, seed=0, **USUAL).images for switch in (False, True))
        assert np.array_equal(plain, weighted), "without brackets the switch changes nothing"
    wanted = reference(prompt, generator=torch.Generator().manual_seed(0), height=64, width=96, **USUAL).images
    assert np.abs(wanted - got).max() <= BOUND


def test_one_prompt_of_several_is_weighed(ours: Pipeline) -> None:
    arguments = usual(ours)
    prompts = ["a cat", "a (red:1.4) cat", "a dog"]
    together = ours(prompts, negative_prompt="fog", weighted=True, seed=[0, 0, 0], **arguments).images
    for prompt, picture in zip(prompts, together, strict=True):
        alone = ours(prompt, negative_prompt="fog", weighted=True, seed=0, **arguments).images[0]
        assert np.abs(alone - picture).max() <= BOUND


def test_a_weighted_picture_is_drawn_again(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with Pipeline(bundle(SHAPE, **BUNDLES[2])) as pipeline:
        output = pipeline([WEIGHED[0][0], LONG], weighted=True, seed=3, guidance_rescale=0.5, num_inference_steps=2)
        (tmp_path / "one.png").write_bytes(to_png(output.images[1], output.recipes[1]))
        recipe = read_recipe(tmp_path / "one.png")
        again = pipeline(**repeat_call(recipe, pipeline.manifest))
        assert to_png(*repeated_picture(recipe, pipeline.manifest, again)) == (tmp_path / "one.png").read_bytes()


def test_clip_skip_and_rescaled_guidance_change_the_picture(reference: Any, bundle: Callable[..., Path]) -> None:
    """So that what the tests above hold equal could differ."""
    with Pipeline(bundle(SHAPE, **BUNDLES[3])) as skipping:
        without = draw(reference, 3, [("a cat", 1)], [("fog", 1)], **USUAL)
        assert np.abs(without - skipping("a cat", negative_prompt="fog", seed=0, **USUAL).images).max() > 2 * BOUND
        with pytest.raises(ArgumentError, match="clip_skip: expected 1, which is compiled in, found 2"):
            skipping("a cat", clip_skip=2)
    with Pipeline(bundle(SHAPE, **BUNDLES[2])) as rescaling:
        plain, rescaled = (rescaling("a cat", seed=0, **USUAL, guidance_rescale=r).images for r in (0.0, 0.7))
        assert np.abs(plain - rescaled).max() > 2 * BOUND
        wanted = draw(reference, 2, [("a cat", 1)], [("", 1)], **USUAL, guidance_rescale=0.7)
        got = rescaling("a cat", negative_prompt="", seed=0, **USUAL, guidance_rescale=0.7).images
        assert np.abs(wanted - got).max() <= BOUND


@pytest.mark.parametrize("prompt", ["a zebrastyle koala", "<fog>, a koala in zebrastyle", "ZEBRASTYLE"])
def test_learned_words(reference: Any, learned: Any, bundle: Callable[..., Path], prompt: str) -> None:
    """diffusers puts the tokens of all vectors into the prompt; what a chunk cannot hold begins the next."""
    arguments = USUAL | {"clip_skip": 1}
    with Pipeline(bundle(SHAPE, **BUNDLES[3])) as pipeline:
        converted = {name: learned.maybe_convert_prompt(prompt, getattr(learned, name)) for name in TOKENIZERS}
        wanted = draw(learned, 3, converted, [("fog", 1)], **arguments)
        got = pipeline(prompt, negative_prompt="fog", seed=0, **arguments).images
    assert np.abs(wanted - got).max() <= BOUND
    assert np.abs(draw(reference, 3, [(prompt, 1)], [("fog", 1)], **arguments) - got).max() > 2 * BOUND


@pytest.mark.parametrize("chunks", [2, 3])
def test_verify_knows_what_is_compiled_in(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], chunks: int
) -> None:
    given = BUNDLES[chunks].get("embeddings", ())
    verification = verify(bundle(SHAPE, **BUNDLES[chunks]), str(checkpoint(SHAPE)), embeddings=given)
    assert verification.failures == []
    assert len(verification.pictures) == 3 + len(given)
