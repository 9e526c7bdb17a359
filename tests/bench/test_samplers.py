"""Comparing samplers and numbers of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from koala_bench import samplers
from koala_bench.samplers import Figure, Study, markdown, measure
from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline
from koala_verify.pixels import Pixels, psnr

SHAPE = "koala-700m-like"
PROMPTS = ["a koala", "a large red circle", "two small blue squares"]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "MANY", ("dpmpp_3m", 12))
    monkeypatch.setattr(samplers, "OTHER_MANY", ("unipc", 12))


def test_what_is_measured_is_kept(bundle: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[str] = []

    def judge(index: int, picture: Pixels) -> bool:
        assert picture.shape == (64, 96, 3)
        return index > 0

    with Pipeline(bundle(SHAPE, batch=2)) as pipe:
        first = measure(pipe, PROMPTS, [("euler", 3), ("heun", 3)], tmp_path, judge)
        cells = [("euler", 3), ("heun", 3), ("euler_a", 4)]
        study = measure(pipe, PROMPTS, cells, tmp_path, judge, lambda what, share: seen.append(what))
        wanted = [np.asarray(pipe(prompt, seed=i, num_inference_steps=3).images[0]) for i, prompt in enumerate(PROMPTS)]
        with pytest.raises(ArgumentError, match="scheduler: expected a class"):
            measure(pipe, PROMPTS, [("fast", 4)], tmp_path)
    with np.load(tmp_path / "converged.npz") as data:
        near = sorted(psnr(each, got, 255.0) for each, got in zip(data["pictures"], wanted, strict=True))
    assert study.figures[:2] == first.figures
    assert study.figures[0] == Figure("euler", 3, 3, 3, round(near[1], 2), 2 / 3)
    assert (study.figures[1].rows, study.figures[2].psnr) == (5, None)
    assert json.loads((tmp_path / "results.json").read_text())["figures"][2]["name"] == "euler_a"
    assert study.agreement > 20
    assert seen == ["euler, 3 steps", "heun, 3 steps", "euler_a, 4 steps"]


def test_the_command_goes_on_where_it_stopped(bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    arguments = [str(bundle(SHAPE)), str(tmp_path / "out"), "--prompts", str(tmp_path / "prompts.txt")]
    samplers.main([*arguments, "--samplers", "euler", "--steps", "2"])
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    samplers.main([*arguments, "--samplers", "euler,unipc", "--steps", "2,4"])
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    assert after["figures"][0] == before["figures"][0]
    assert [(each["name"], each["steps"]) for each in after["figures"]] == [
        *(("euler", 2), ("unipc", 2), ("euler", 4), ("unipc", 4))
    ]
    for name in ("results.png", "results-dark.png", "results.svg", "results-dark.svg", "results.md"):
        assert (tmp_path / "out" / name).stat().st_size > 100


def test_tables() -> None:
    figures = (Figure("euler", 4, 4, 300, 31.25, 0.9), Figure("euler_a", 6, 6, 300, None, 0.95))
    shown = markdown(Study("0", 2.0, "many", 70.0, 0.96, figures)).splitlines()
    assert shown[:3] == [
        "| PSNR to the converged picture, dB | 4 steps | 6 steps |",
        "|---|---:|---:|",
        "| `euler` | 31.2 |  |",
    ]
    assert shown[4:] == [
        "| right pictures | 4 steps | 6 steps |",
        "|---|---:|---:|",
        "| `euler` | 90.0% |  |",
        "| `euler_a` |  | 95.0% |",
    ]
