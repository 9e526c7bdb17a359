"""``koala bench`` measures what it says: known delays, a machine that drifts, a backend that crashes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from koala_bench.machine import install_bytes
from koala_bench.results import COLUMNS, Results, changes, load, markdown, rows, save, table
from koala_bench.runner import picture_flops, run
from koala_cli.main import run_app
from koala_runtime.contract.errors import BundleError
from koala_runtime.contract.manifest import read_manifest
from tests.support.fake_backends import DELAY

SHAPE = "koala-700m-like"
FAKE = "tests.support.fake_backends:"
ROOT = str(Path(__file__).resolve().parent.parent)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this folder's tests; they draw with diffusers once, which warns of numpy."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("KOALA_TEST_STARTED", str(time.time()))


@pytest.fixture(scope="module")
def paths(bundle: Callable[..., Path], checkpoint: Callable[[str], Path]) -> tuple[Path, str]:
    return bundle(SHAPE), str(checkpoint(SHAPE))


@pytest.fixture(scope="module")
def results(paths: tuple[Path, str]) -> Results:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", ROOT)
        names = ["koala:cpu", "onnxruntime", "koala:tensorrt", f"{FAKE}Slow", f"{FAKE}Quick", f"{FAKE}Crashing"]
        return run(*paths, names, "a cat", rounds=8, steps=2)


def test_a_known_delay_is_what_is_told(results: Results) -> None:
    slow, quick = results.of(f"{FAKE}Slow"), results.of(f"{FAKE}Quick")
    for each, delay in ((slow, DELAY), (quick, DELAY / 2)):
        assert delay <= each.quantile(0.5) < delay + 0.02
        assert sum(each.parts.values()) == pytest.approx(each.quantile(0.5))
        assert each.cold_seconds > each.quantile(0.5)
    assert len(slow.warm_seconds) == 8


def test_a_crash_leaves_the_others(results: Results) -> None:
    assert "its process ended with code 3: the wheels came off" in results.missing[f"{FAKE}Crashing"]
    assert {each.name for each in results.measured} == {"koala:cpu", "onnxruntime", f"{FAKE}Slow", f"{FAKE}Quick"}


def test_what_cannot_run_is_listed_with_the_reason(results: Results) -> None:
    assert "NVIDIA driver" in results.missing["koala:tensorrt"]


def test_pictures_are_compared_with_float32_pytorch(results: Results) -> None:
    for name in ("koala:cpu", "onnxruntime"):
        likeness = results.of(name).psnr
        assert likeness is not None
        assert likeness > 45
    assert (results.of(f"{FAKE}Quick").psnr or 99) < 30


def test_installations_and_operations_are_counted(results: Results, paths: tuple[Path, str]) -> None:
    assert install_bytes(["pillow"]) == results.of(f"{FAKE}Quick").install_bytes > 1e6
    assert install_bytes(["koala-trt"]) > install_bytes(["onnxruntime"]) > install_bytes(["numpy"])
    traced = read_manifest(paths[0]).traced
    rest = sum(counts.flops for name, counts in traced.items() if name != "denoiser")
    assert results.flops == picture_flops(read_manifest(paths[0]), 2) == rest + 2 * traced["denoiser"].flops
    assert results.peak.flops_per_second > results.flops / results.of("koala:cpu").quantile(0.5)


def test_interleaving_cancels_a_drift(paths: tuple[Path, str]) -> None:
    """The machine gets ever slower; the ratio of two backends stays what it is."""
    drifting = run(*paths, [f"{FAKE}Drifting", f"{FAKE}DriftingSlow"], "a cat", rounds=10, steps=1, reference=False)
    quick, slow = (drifting.of(f"{FAKE}{name}") for name in ("Drifting", "DriftingSlow"))
    assert quick.warm_seconds[-1] > 1.1 * quick.warm_seconds[0], "it does drift"
    assert slow.quantile(0.5) / quick.quantile(0.5) == pytest.approx(2, rel=0.15)


def test_every_way_of_showing_says_the_same(results: Results, tmp_path: Path) -> None:
    files = save(results, tmp_path / "out")
    assert load(tmp_path / "out" / "results.json") == results
    text = markdown(results)
    for row in rows(results):
        assert f"| {' | '.join(row)} |" in text
    shown = table(results)
    assert [str(column.header) for column in shown.columns] == list(COLUMNS)
    assert [next(iter(column.cells)) for column in shown.columns] == list(rows(results)[0])
    svg = (tmp_path / "out" / "results.svg").read_text(encoding="utf-8")
    for each in results.measured:
        assert f"<!--  {1e3 * each.quantile(0.5):,.0f} -->" in svg, "the figure at the end of its bar"
        assert f"<!-- {each.name} -->" in svg
    assert {path.name for path in files} == {
        *("results.json", "results.md", "results.png", "results.svg", "results-dark.png", "results-dark.svg")
    }
    with (
        Image.open(tmp_path / "out" / "results.png") as light,
        Image.open(tmp_path / "out" / "results-dark.png") as dark,
    ):
        assert np.asarray(light.convert("L")).mean() > 180 > 75 > np.asarray(dark.convert("L")).mean()


def test_compare_knows_the_noise(results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def scaled(name: str, factor: float) -> Results:
        return replace(
            results,
            measured=tuple(
                replace(one, warm_seconds=tuple(factor * s for s in one.warm_seconds)) if one.name == name else one
                for one in results.measured
            ),
        )

    slow = f"{FAKE}Slow"
    words = {name: word for name, *_, word in changes(results, scaled(slow, 2.0))}
    assert words.pop(slow) == "2.00x slower"
    assert set(words.values()) == {"within the noise"}
    save(results, tmp_path / "a")
    save(scaled(slow, 0.5), tmp_path / "b")
    assert run_app(["compare", str(tmp_path / "a/results.json"), str(tmp_path / "b/results.json")]) == 0
    assert "2.00x faster" in capsys.readouterr().out
    (tmp_path / "b" / "results.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(BundleError, match="expected results of `koala bench`"):
        load(tmp_path / "b" / "results.json")


def test_the_command(paths: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "bench",
        str(paths[0]),
        paths[1],
        "--backend",
        f"{FAKE}Quick",
        "--backend",
        "koala:rtx",
        "--no-reference",
    ]
    assert run_app([*command, "--rounds", "2", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "not measured: koala:rtx (" in shown
    assert len([*(tmp_path / "out").iterdir()]) == 6
    assert run_app([*command, "--rounds", "1"]) == 2


@pytest.mark.full
def test_diffusers_eager_and_compiled(paths: tuple[Path, str]) -> None:
    results = run(*paths, ["diffusers", "diffusers-compile", "koala:cpu"], "a cat", rounds=2, steps=2)
    assert results.missing == {}
    for each in results.measured:
        assert (each.psnr or 0) > 40
        assert all(seconds >= 0 for seconds in each.parts.values())
        assert each.parts["steps"] > 0
