"""koala-tiny's training: it can be stopped and goes on as if it had not been, and the whole of it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

from koala_tiny.fit import Recipe, fit
from koala_tiny.scenes import held_out, training_pair, words
from koala_tiny.tokenizer import merges_of_prompts, vocabulary
from tests.support.koala_tiny import EXAMPLE

RECIPE = Recipe("line", steps=20, learning_rate=0.1, warmup=3, ema=0.9)


def trained(folder: Path, stop_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    line = nn.Linear(3, 1)

    def loss_of(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 3)  # fit seeds each step
        return nn.functional.mse_loss(line(inputs), inputs.sum(1, keepdim=True))

    folder.mkdir(exist_ok=True)
    fit(RECIPE, nn.ModuleDict({"line": line}), loss_of, folder)
    return line.weight.detach()


def test_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    for step in (7, 13):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", stop_at=step)
    torch.testing.assert_close(trained(tmp_path / "parts"), whole, rtol=0, atol=0)
    torch.testing.assert_close(trained(tmp_path / "parts"), whole, rtol=0, atol=0)  # done: nothing more is learnt
    torch.testing.assert_close(whole, torch.ones(1, 3), rtol=0, atol=0.5)


def test_no_training_picture_shows_what_is_held_out() -> None:
    rng = Random(0)
    for _ in range(3000):
        request, scene = training_pair(rng)
        assert not any(held_out(thing.shape, thing.colour, scene.background) for thing in scene.things)
        for wanted, thing in zip(request.things, scene.things, strict=True):
            assert wanted.shape in (None, thing.shape)
            assert wanted.colour in (None, thing.colour)
        assert len(words(request, rng).split()) < 30


def test_the_vocabulary_is_always_the_same() -> None:
    """A run that goes on in another process must read its prompts as before: the committed one's is the recipe's."""
    vocab = json.loads((EXAMPLE / "checkpoint" / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert vocab == {token: i for i, token in enumerate(vocabulary(merges_of_prompts()))}


def test_every_word_of_a_prompt_is_a_token() -> None:
    tokens, rng = {*vocabulary(merges_of_prompts())}, Random(0)
    for _ in range(500):
        for word in words(training_pair(rng)[0], rng).replace(",", " ,").split():
            assert f"{word}</w>" in tokens


@pytest.mark.full
def test_the_whole_recipe_runs(tmp_path: Path) -> None:
    """A thousandth of it: what comes out draws nothing, but it is a checkpoint with every file."""
    command = [sys.executable, str(EXAMPLE / "train.py"), "--share", "0.001"]
    command += ["--state", str(tmp_path / "state"), "--output", str(tmp_path / "checkpoint")]
    subprocess.run(command, check=True, capture_output=True)
    written = {path.relative_to(tmp_path / "checkpoint") for path in (tmp_path / "checkpoint").rglob("*")}
    assert written == {path.relative_to(EXAMPLE / "checkpoint") for path in (EXAMPLE / "checkpoint").rglob("*")}
    previews = {path.name for path in (tmp_path / "preview-decoder").iterdir()}
    assert previews == {path.name for path in (EXAMPLE / "preview-decoder").iterdir()}
