"""The committed checkpoint draws what it is told, and a line that is wrong somewhere does not.

The pictures are judged by looking at them (``tests/support/judge.py``); what is left out of training is what is asked
for. Full figures: ``python -m tests.support.koala_tiny BUNDLE``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from koala_bundle.manifest import read_manifest
from koala_bundle.targets import RTX
from koala_engines.build import build_engines
from koala_runtime import Pipeline
from koala_runtime.prompts import PromptEncoder
from koala_runtime.run import Run
from koala_runtime.samplers import Scheduler, Table
from koala_tiny.scenes import words
from tests.support.judge import judge, look
from tests.support.koala_tiny import CHECKPOINT, picture, requests, score

SINGLES, PAIRS = requests(1, 20), requests(2, 20)


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


@pytest.fixture
def pipe(tiny: Path) -> Iterator[Pipeline]:
    with Pipeline(tiny, "cpu") as pipe:
        yield pipe


def assert_it_draws_what_it_is_told(pipe: Pipeline) -> None:
    """At least 16 of 20 each, with room for another platform's rounding to cost a picture or two.

    Ends with the fifth that is wrong: the others cannot change the verdict.
    """
    for wanted in (SINGLES, PAIRS):
        wrong = 0
        for seed, request in enumerate(wanted):
            wrong += not all(judge(picture(pipe, words(request), seed), request).values())
            assert wrong <= 4


def test_it_draws_what_it_is_told(pipe: Pipeline) -> None:
    assert_it_draws_what_it_is_told(pipe)


@pytest.mark.full
def test_three_hundred_prompts(pipe: Pipeline) -> None:
    """Where it was measured it is 0.953 and 0.947; another platform's rounding may cost three pictures of 150."""
    assert score(pipe, requests(1, 150)).share() >= 0.93
    assert score(pipe, requests(2, 150)).share() >= 0.92


# --- what must not go unseen


def reversed_timesteps(table: Table) -> Table:
    return replace(table, timesteps=table.timesteps[::-1].copy())


def unit_noise(table: Table) -> Table:
    return replace(table, init_noise_sigma=1.0)


def late_coefficients(table: Table) -> Table:
    later = [*range(1, len(table.scales)), -1]
    return replace(table, updates=table.updates[later], scales=table.scales[later])


@pytest.mark.parametrize("broken", [reversed_timesteps, unit_noise, late_coefficients])
def test_a_broken_sampler_is_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    table = Scheduler.table
    monkeypatch.setattr(Scheduler, "table", lambda self, schedule: broken(table(self, schedule)))
    with pytest.raises(AssertionError):
        assert_it_draws_what_it_is_told(pipe)


def before_filling(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, Any], Any]) -> None:
    fill = Run.fill
    monkeypatch.setattr(Run, "fill", lambda self, inputs: fill(self, {n: change(n, v) for n, v in inputs.items()}))


def test_exchanged_guidance_rows_are_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ("input_ids", "input_ids_2", "prompt_mask")
    before_filling(monkeypatch, lambda name, values: values[::-1] if name in rows else values)
    with pytest.raises(AssertionError):
        assert_it_draws_what_it_is_told(pipe)


def assert_it_obeys_micro_conditioning(pipe: Pipeline) -> None:
    """A crop's corner moves the thing up and to the left, and a small original size blurs it, as in training."""
    prompt = "a large green circle in the centre on a white background"
    for seed in range(4):
        whole = look(picture(pipe, prompt, seed))
        cropped = look(picture(pipe, prompt, seed, crops_coords_top_left=(30, 30)))
        soft = look(picture(pipe, prompt, seed, original_size=(16, 16)))
        assert cropped.things[0].x < whole.things[0].x - 8
        assert cropped.things[0].y < whole.things[0].y - 8
        assert soft.edge > 1.3 * whole.edge


def test_it_obeys_micro_conditioning(pipe: Pipeline) -> None:
    assert_it_obeys_micro_conditioning(pipe)


def test_a_dropped_micro_conditioning_is_seen(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    before_filling(monkeypatch, lambda name, values: 0 * values if name == "time_ids" else values)
    with pytest.raises(AssertionError):
        assert_it_obeys_micro_conditioning(pipe)


def test_exchanged_tokenizer_pads_are_seen(tiny: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the judge, since the network reads prompts behind either pad; but it is not the picture of diffusers."""
    prompt = words(PAIRS[0])
    wanted = picture(pipe, prompt, 0).astype(int)
    swapped = PromptEncoder((tiny / "tokenizer_2", tiny / "tokenizer"))
    monkeypatch.setattr(pipe, "_encoder", swapped)
    assert np.abs(picture(pipe, prompt, 0) - wanted).max() > 2  # the bound of test_diffusers_draws_the_same


# --- guidance and negative prompts


def test_guidance_matters(pipe: Pipeline) -> None:
    assert score(pipe, PAIRS).right > score(pipe, PAIRS, guidance_scale=1.0).right


def test_the_negative_prompt_works(pipe: Pipeline) -> None:
    """A colour that the prompt leaves open is drawn less often where the negative prompt names it."""

    def colours(negative: str | None) -> Counter[str | None]:
        prompt = "a circle on a white background"
        sights = [look(picture(pipe, prompt, seed, negative_prompt=negative)) for seed in range(24)]
        return Counter(thing.colour for sight in sights for thing in sight.things)

    before = colours(None)
    most, times = before.most_common(1)[0]
    assert colours(f"a {most} circle on a white background")[most] < times / 2


# --- the checkpoint itself


def test_it_is_laid_out_like_the_real_ones() -> None:
    files = {str(path.relative_to(CHECKPOINT).as_posix()) for path in CHECKPOINT.rglob("*") if path.is_file()}
    weights = {f"{name}/model.fp16.safetensors" for name in ("text_encoder", "text_encoder_2")}
    weights |= {f"{name}/diffusion_pytorch_model.fp16.safetensors" for name in ("unet", "vae")}
    configs = {f"{name}/config.json" for name in ("text_encoder", "text_encoder_2", "unet", "vae")}
    names = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    tokenizers = {f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in names}
    assert files == {"model_index.json", "scheduler/scheduler_config.json"} | weights | configs | tokenizers
    assert sum((CHECKPOINT / name).stat().st_size for name in files) <= 16e6
    unet = json.loads((CHECKPOINT / "unet" / "config.json").read_text())
    assert unet["mid_block_type"] is None
    assert unet["layers_per_block"] == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.full)])
def test_diffusers_draws_the_same(bundle: Callable[..., Path], precision: str) -> None:
    from diffusers import StableDiffusionXLPipeline

    reference: Any = StableDiffusionXLPipeline.from_pretrained(
        CHECKPOINT, variant="fp16", dtype=torch.float32, add_watermarker=False
    )
    reference.set_progress_bar_config(disable=True)
    with Pipeline(bundle("koala-tiny", precision=precision), "cpu") as pipe:
        for seed, request in enumerate([*SINGLES[:2], *PAIRS[:2]]):
            settings = {"num_inference_steps": 10, "guidance_scale": 2.0}
            generator = torch.Generator().manual_seed(seed)
            theirs = reference(words(request), generator=generator, height=128, width=128, **settings).images[0]
            ours = picture(pipe, words(request), seed, **settings)
            assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 2


def test_rtx_plans_build(tiny: Path) -> None:
    build_engines(tiny, RTX)
    assert read_manifest(tiny).profile.height == 128  # its own size, from sample_size
    plans = {path.stem for path in (tiny / "engines" / "rtx").glob("*.plan")}
    assert plans == {entry.name for entry in read_manifest(tiny).components}
