"""``koala bench --json`` and ``koala compare --json`` print what the files and tables say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bench.results import load
from koala_cli.main import run_app

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "cpu-koala-tiny" / "results.json"
SHAPE = "koala-700m-like"


@pytest.fixture
def command(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Measure a backend of the tests, in little time."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    options = ["--backend", "tests.support.fake_backends:Quick", "--no-reference", "--rounds", "2", "--json"]
    return ["bench", str(checkpoint(SHAPE)), str(bundle(SHAPE)), *options, "--output", str(tmp_path / "measured")]


def test_bench_prints_its_results_file(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "measured/results.json").read_bytes())


def test_bench_prints_its_sweeps(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([*command, "--steps-sweep", "1,2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"steps": json.loads((tmp_path / "measured/sweep-steps.json").read_bytes())}


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    results = load(RESULTS)
    assert run_app(["compare", str(RESULTS), str(RESULTS), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["backend"] for row in printed] == [each.name for each in results.measured]
    for row in printed:
        median = results.of(row["backend"]).quantile(0.5)
        assert row == {
            "backend": row["backend"],
            "before_seconds": median,
            "after_seconds": median,
            "change": "within the noise",
        }
