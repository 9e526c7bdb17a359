"""``koala_bench.samplers`` measures what it says, on a tiny checkpoint: the converged pictures themselves are equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koala_bench import samplers
from koala_bench.samplers import Study, load, main, markdown, measure, save
from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline
from koala_verify.pixels import Pixels

SHAPE = "koala-700m-like"
PROMPTS = ("a koala", "a red circle", "a tree", "a house")
CELLS = (("dpmpp_3m", 6), ("euler", 2), ("euler", 5), ("euler_a", 2), ("heun", 2))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "MANY", ("dpmpp_3m", 6))
    monkeypatch.setattr(samplers, "OTHERS", (("dpmpp_3m", 6), ("euler", 3)))
    monkeypatch.setattr(samplers, "COMPARED", 2)


def first_only(index: int, picture: Pixels) -> bool:
    assert picture.ndim == 3
    return index == 0


def test_a_stopped_study_goes_on_and_says_what_it_found(bundle: Callable[..., Path], tmp_path: Path) -> None:
    drawn: list[str] = []

    def interrupt(what: str, share: float) -> None:
        drawn.append(what)
        if what == "3 of 5: euler, 5 steps" and drawn.count(what) == 1:
            raise KeyboardInterrupt

    with Pipeline(bundle(SHAPE)) as pipe:
        with pytest.raises(KeyboardInterrupt):
            measure(pipe, PROMPTS, CELLS, tmp_path, first_only, interrupt)
        assert [(each.name, each.steps) for each in load(tmp_path / "samplers.json").figures] == [*CELLS[:2]]
        before = len(drawn)
        study = measure(pipe, PROMPTS, CELLS, tmp_path, first_only, interrupt)
        assert {*drawn[before:]} == {"3 of 5: euler, 5 steps", "4 of 5: euler_a, 2 steps", "5 of 5: heun, 2 steps"}
        with pytest.raises(ArgumentError, match="these prompts"):
            measure(pipe, PROMPTS[:2], CELLS, tmp_path)
    assert load(tmp_path / "samplers.json") == study
    assert study.converged == "2 by dpmpp_3m, 6 steps"
    assert study.agreement["dpmpp_3m, 6 steps"] == 150 > study.agreement["euler, 3 steps"]
    found = {(each.name, each.steps): each for each in study.figures}
    assert found["dpmpp_3m", 6].psnr == 150 > found["euler", 5].psnr > found["euler", 2].psnr  # type: ignore[operator]
    assert found["euler_a", 2].psnr is None
    assert found["heun", 2].rows == 3
    assert {each.count for each in study.figures} == {4}
    assert {each.right for each in study.figures} == {1 / 4}


def test_the_command_writes_tables_and_plots(
    bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a koala\n\n", "utf-8")
    more = ["--prompts", str(tmp_path / "prompts.txt"), "--samplers", "euler,unipc", "--steps", "1,2,3,4"]
    main([str(bundle(SHAPE)), str(tmp_path / "out"), *more])
    made = {path.name for path in (tmp_path / "out").iterdir()}
    plots = {f"results{dark}.{ending}" for dark in ("", "-dark") for ending in ("png", "svg")}
    assert made == plots | {"samplers.json", "converged.npz", "results.md"}
    assert "results.md" in capsys.readouterr().out
    study = load(tmp_path / "out" / "samplers.json")
    assert [each.count for each in study.figures] == [1] * 8
    assert "| `unipc` |" in markdown(study)
    assert "right" not in markdown(study)


@pytest.mark.parametrize("wrong", [{"--samplers": "euler,eular"}, {"--steps": "4,x"}, {"--prompts": "none.txt"}])
def test_what_is_wrong_is_said_before_anything_is_drawn(
    wrong: dict[str, Any], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(bundle(SHAPE)), str(tmp_path / "out"), *(word for pair in wrong.items() for word in pair)])
    assert stopped.value.code
    assert not (tmp_path / "out").exists()


def test_a_line_is_drawn_for_what_was_measured_at_most_steps(tmp_path: Path) -> None:
    figures = [samplers.Figure("euler", steps, steps, 9, 30.0 + steps, 0.5) for steps in (1, 2, 3, 4)]
    few = [samplers.Figure("unipc", steps, steps, 9, 30.0 + steps, 0.5) for steps in (1,)]
    study = Study("", 2.0, "", {}, (*figures, *few))
    save(study, tmp_path)
    one = (tmp_path / "results.svg").read_bytes()
    save(replace(study, figures=(*figures,)), tmp_path)
    assert (tmp_path / "results.svg").read_bytes() == one
    assert "| `euler` | 50.0 |" in markdown(study)
