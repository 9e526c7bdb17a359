"""The numbers that a request puts into a program's inputs: no device, no bundle and no file are needed for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from koala_bundle.manifest import Manifest
from koala_bundle.spec import Profile
from koala_bundle.targets import CPU
from koala_runtime.arguments import Arguments
from koala_runtime.inputs import prepare
from koala_runtime.noise import Stream, randn
from koala_runtime.program import make_program
from koala_runtime.prompts import Tokens
from koala_runtime.request import Request, make_request
from koala_runtime.samplers import Schedule, make_scheduler
from koala_runtime.samplers.classes import EulerDiscreteScheduler
from tests.support.manifests import MANIFESTS, manifest_of

LENGTH = 77
PRESET = "koala-lightning-700m"
STEPS = 5


class Spelling:
    """An encoder whose ids spell the text, from 1 for the first text encoder and from 1001 for the second."""

    def encode(self, texts: Sequence[str], texts_2: Sequence[str], *, weighted: bool) -> tuple[Tokens, Tokens]:
        assert not weighted
        return self._spell(texts, 1), self._spell(texts_2, 1001)

    def _spell(self, texts: Sequence[str], start: int) -> Tokens:
        ids = np.full((len(texts), LENGTH), start, np.int32)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = [start + ord(letter) for letter in text]
        return Tokens(ids, np.ones(ids.shape, np.float32), np.ones((len(texts), 1), np.int32))


def spell(text: str, start: int = 1) -> list[int]:
    return [start + (ord(text[place]) if place < len(text) else 0) for place in range(LENGTH)]


def manifest_for(batch: int = 1, cfg: bool = True, zeroed: bool = True) -> Manifest:
    manifest = manifest_of(PRESET, Profile(64, 96, batch, "fp16", cfg=cfg))
    return replace(manifest, spec=replace(manifest.spec, force_zeros_for_empty_prompt=zeroed))


def request_for(manifest: Manifest, prompt: Any, negative: Any = None, **arguments: Any) -> Request:
    arguments = {"seed": 5, "num_inference_steps": STEPS, "guidance_scale": 1.0} | arguments
    given = cast("Arguments", {"negative_prompt": negative, **arguments})
    return make_request(manifest, CPU, Spelling(), make_scheduler(manifest.spec.scheduler), prompt, given)


def texts(inputs: dict[str, Any], name: str = "input_ids", start: int = 1) -> list[str]:
    return ["".join(chr(letter - start) for letter in row if letter > start) for row in inputs[name]]


@pytest.mark.parametrize("manifest", MANIFESTS)
@pytest.mark.parametrize("steps", [1, 7])
def test_every_input_of_the_program_is_there_as_it_is_declared(manifest: Manifest, steps: int) -> None:
    request = request_for(manifest, "a cat", num_inference_steps=steps, scheduler="euler")
    inputs = prepare(manifest, request, slice(0, manifest.profile.batch))
    places = make_program(manifest.components, steps).inputs
    per_step = {"timestep": 1, "coefficients": 24, "input_scale": 1}
    assert inputs.keys() == places.keys()
    for name, values in inputs.items():
        assert values.dtype == places[name].dtype, name
        assert values.shape == ((steps, per_step[name]) if name in per_step else places[name].shape), name


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_noise_is_there_for_samplers_that_draw(manifest: Manifest) -> None:
    """One row of padded items per step, the rows of steps that draw in diffusers' order, no place for others."""
    request = request_for(manifest, "a cat", num_inference_steps=4, scheduler="lcm", seed=7)
    inputs = prepare(manifest, request, slice(0, manifest.profile.batch))
    latents = inputs["latents"].shape
    assert inputs["noise"].shape == (4, math.prod(latents))
    stream = Stream(7)
    drawn = [stream.randn((1, *latents[1:])) for _ in range(4)]
    assert np.array_equal(request.noise.latents, drawn[0])
    rows = inputs["noise"].reshape(4, *latents)
    assert np.array_equal(rows[:3, :1], drawn[1:])
    assert not rows[3].any(), "LCM's last step draws nothing"
    assert "noise" in make_program(manifest.components, 4, tables=("noise",)).inputs
    assert "noise" not in make_program(manifest.components, 4).inputs


def test_with_guidance_the_negatives_come_first() -> None:
    manifest = manifest_for(batch=2)
    request = request_for(manifest, ["cat", "dog"], ["fog", "rain"], guidance_scale=3.5)
    inputs = prepare(manifest, request, slice(0, 2))
    assert texts(inputs) == texts(inputs, "input_ids_2", 1001) == ["fog", "rain", "cat", "dog"]
    assert inputs["input_ids"][2].tolist() == spell("cat")
    assert inputs["input_ids_2"][0].tolist() == spell("fog", 1001)


def test_without_guidance_there_are_only_prompts() -> None:
    manifest = manifest_for(batch=2, cfg=False)
    inputs = prepare(manifest, request_for(manifest, ["cat", "dog"]), slice(0, 2))
    assert texts(inputs) == texts(inputs, "input_ids_2", 1001) == ["cat", "dog"]
    assert inputs["prompt_mask"].tolist() == [1, 1]
    assert inputs["time_ids"].shape == (2, 6)
    assert "guidance_scale" not in inputs


def test_a_short_batch_is_filled_with_its_last_prompt_and_no_noise() -> None:
    manifest = manifest_for(batch=3)
    request = request_for(manifest, ["ant", "bee", "cow", "dog"], ["1", "2", "3", "4"], guidance_scale=2)
    whole, short = (prepare(manifest, request, chunk) for chunk in (slice(0, 3), slice(3, 6)))
    assert texts(whole) == ["1", "2", "3", "ant", "bee", "cow"]
    assert texts(short) == ["4", "4", "4", "dog", "dog", "dog"]
    sigma = request.table.init_noise_sigma
    noise = randn((4, 4, 8, 12), 5) * np.float32(sigma)
    assert sigma > 1
    assert np.array_equal(whole["latents"], noise[:3])
    assert np.array_equal(short["latents"], np.concatenate([noise[3:], np.zeros((2, 4, 8, 12), np.float32)]))


def test_the_batch_in_which_a_prompt_is_drawn_does_not_matter() -> None:
    """Three at once, or one at a time: the same rows, only in other batches."""
    wanted = ["ant", "bee", "cow"]
    together, alone = manifest_for(batch=3), manifest_for(batch=1)
    inputs = prepare(together, request_for(together, wanted, "fog"), slice(0, 3))
    request = request_for(alone, wanted, "fog")
    for row in range(3):
        one = prepare(alone, request, slice(row, row + 1))
        assert texts(one) == ["fog", wanted[row]]
        assert np.array_equal(one["latents"], inputs["latents"][row : row + 1])
        assert np.array_equal(one["time_ids"], inputs["time_ids"][row::3])


@pytest.mark.parametrize(
    ("zeroed", "negative", "mask"),
    [
        (True, None, [0, 0, 1, 1]),  # as SDXL's training had it: no negative prompt is zeros, not the empty text
        (True, "", [1, 1, 1, 1]),
        (True, ["", "fog"], [1, 1, 1, 1]),
        (False, None, [1, 1, 1, 1]),
        (False, "", [1, 1, 1, 1]),
    ],
)
def test_masks(zeroed: bool, negative: Any, mask: list[float]) -> None:
    manifest = manifest_for(batch=2, zeroed=zeroed)
    inputs = prepare(manifest, request_for(manifest, ["", "cat"], negative), slice(0, 2))
    assert inputs["prompt_mask"].tolist() == mask
    if negative is None:
        assert texts(inputs)[:2] == ["", ""], "what a mask hides is the empty text"


@pytest.mark.parametrize(("guidance", "passed"), [(0, 1), (0.5, 1), (1, 1), (1.5, 1.5), (7.5, 7.5)])
def test_guidance_is_at_least_1(guidance: float, passed: float) -> None:
    """At 1 the guided prediction is the prompt's own, as it is in diffusers at anything below."""
    manifest = manifest_for()
    inputs = prepare(manifest, request_for(manifest, "cat", guidance_scale=guidance), slice(0, 1))
    assert inputs["guidance_scale"].tolist() == [passed]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_tables_are_those_of_the_schedule(spacing: str, steps: int) -> None:
    manifest = manifest_for()
    chosen = EulerDiscreteScheduler.from_config(manifest.spec.scheduler.config, timestep_spacing=spacing)
    inputs = prepare(manifest, request_for(manifest, "cat", num_inference_steps=steps, scheduler=chosen), slice(0, 1))
    table = chosen.table(Schedule(steps))
    assert np.array_equal(inputs["timestep"][:, 0], table.timesteps)
    assert np.array_equal(inputs["coefficients"], table.updates.reshape(-1, 24).astype(np.float32))
    assert np.array_equal(inputs["input_scale"][:, 0], table.scales.astype(np.float32))
    assert not inputs["history"].any(), "nothing is known before the first step"


def test_sizes_are_the_same_in_every_row() -> None:
    manifest = manifest_for(batch=2)
    sizes: dict[str, Any] = {"original_size": (512, 768), "crops_coords_top_left": (16, 32), "target_size": (256, 128)}
    for arguments, row in ((sizes, [512, 768, 16, 32, 256, 128]), ({}, [64, 96, 0, 0, 64, 96])):
        inputs = prepare(manifest, request_for(manifest, ["cat", "dog"], **arguments), slice(0, 2))
        assert inputs["time_ids"].tolist() == [row] * 4


def test_given_latents_are_scaled_and_left_alone() -> None:
    manifest = manifest_for()
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 12)).astype(np.float32)
    before = latents.copy()
    request = request_for(manifest, "cat", latents=latents)
    first, second = (prepare(manifest, request, slice(0, 1)) for _ in range(2))
    assert np.array_equal(first["latents"], before * np.float32(request.table.init_noise_sigma))
    first["latents"][...] = 0
    assert np.array_equal(latents, before)
    for name, values in second.items():
        assert np.array_equal(values, prepare(manifest, request, slice(0, 1))[name]), name
