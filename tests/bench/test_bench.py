"""``koala bench`` measures what it says: known delays, a machine that drifts, a backend that crashes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from koala_bench.backends.registry import backend_problems
from koala_bench.cost import picture_flops, roofline_seconds
from koala_bench.hardware import install_bytes
from koala_bench.readme import BEGIN, END, readme_table, replace_table
from koala_bench.report import save, save_sweep
from koala_bench.results import Peak, Results, ResultsError, changes, load
from koala_bench.runner import BenchOptions, run
from koala_bench.sweep import Sweep, sweep
from koala_bench.tables import (
    COST_COLUMNS,
    PHASE_COLUMNS,
    SPEED_COLUMNS,
    VERSION_COLUMNS,
    markdown,
    rows,
    sweep_columns,
    sweep_rows,
    tables,
)
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.manifest import read_manifest
from koala_cli.main import run_app
from tests.support.fake_backends import DELAY
from tests.support.koala_tiny import CHECKPOINT

SHAPE = "koala-700m-like"
FAKE = "tests.support.fake_backends:"
ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
PUBLISHED = sorted((ROOT / "bench" / "results").glob("*/results.json"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this folder's tests; they draw with diffusers once, which warns of numpy."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("KOALA_TEST_STARTED", str(time.time()))


@pytest.fixture(scope="module")
def paths(bundle: Callable[..., Path], checkpoint: Callable[[str], Path]) -> tuple[Path, str]:
    return bundle(SHAPE), str(checkpoint(SHAPE))


def fakes(*names: str, **options: Any) -> BenchOptions:
    return BenchOptions(names=tuple(FAKE + name for name in names), **{"prompt": "a cat", "reference": False} | options)


@pytest.fixture(scope="module")
def results(paths: tuple[Path, str]) -> Results:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
        names = ("koala:cpu", "onnxruntime:cpu", "koala:tensorrt")
        plan = fakes("Slow", "Quick", "Crashing", "Prepared", "Large", rounds=8, steps=2, reference=True)
        return run(*paths, replace(plan, names=(*names, *plan.names)))  # type: ignore[misc]


def test_a_known_delay_is_what_is_measured(results: Results) -> None:
    slow, quick = results.of(f"{FAKE}Slow"), results.of(f"{FAKE}Quick")
    for each, delay in ((slow, DELAY), (quick, DELAY / 2)):
        assert delay <= each.quantile(0.5) < delay + 0.02
        assert sum(each.phase_seconds.values()) == pytest.approx(each.quantile(0.5))
        assert each.first_seconds > each.quantile(0.5)
    assert len(slow.warm_seconds) == 8
    assert results.speedup(quick) / results.speedup(slow) == pytest.approx(2, rel=0.3)


def test_a_crash_leaves_the_others(results: Results) -> None:
    assert "its process ended with code 3: the wheels came off" in results.not_measured[f"{FAKE}Crashing"]
    others = {f"{FAKE}{name}" for name in ("Slow", "Quick", "Prepared", "Large")}
    assert {each.name for each in results.measured} == {"koala:cpu", "onnxruntime:cpu", *others}


def test_what_cannot_run_is_listed_with_the_reason(results: Results, paths: tuple[Path, str]) -> None:
    assert "NVIDIA driver" in results.not_measured["koala:tensorrt"]
    problems = backend_problems(paths[0])
    assert problems["onnxruntime:cuda"] == "this ONNX Runtime has no CUDAExecutionProvider"
    for name in ("optimum-onnx", "openvino-genai"):
        problem = problems[name]
        assert problem is None or "docs/benchmarks.md" in problem
        assert backend_problems(paths[0], [name])[name] is None, "its own Python is not examined"


def test_pictures_are_compared_with_float32_pytorch(results: Results) -> None:
    for name in ("koala:cpu", "onnxruntime:cpu"):
        likeness = results.of(name).psnr
        assert likeness is not None
        assert likeness > 45
    assert (results.of(f"{FAKE}Quick").psnr or 99) < 30


def test_memory_is_that_of_the_process_alone(results: Results) -> None:
    """The one that started it has torch loaded, and Linux hands its maximum down to what it starts."""
    quick, large = results.of(f"{FAKE}Quick").host_bytes, results.of(f"{FAKE}Large").host_bytes
    assert quick < 120e6
    assert 190e6 < large - quick < 210e6


def test_preparing_is_not_timed(results: Results) -> None:
    assert results.of(f"{FAKE}Prepared").first_seconds < 3
    assert results.of(f"{FAKE}Prepared").host_bytes < 120e6


def test_installations_and_operations_are_counted(results: Results, paths: tuple[Path, str]) -> None:
    assert install_bytes(["pillow"]) == results.of(f"{FAKE}Quick").install_bytes > 1e6
    assert results.of(f"{FAKE}Quick").versions.keys() == {"pillow"}
    assert install_bytes(["koala-trt", "onnxruntime"]) > install_bytes(["onnxruntime"]) > install_bytes(["numpy"])
    manifest = read_manifest(paths[0])
    rest = sum(counts.flops for name, counts in manifest.traced.items() if name != "denoiser")
    assert results.flops == picture_flops(manifest, 2) == rest + 2 * manifest.traced["denoiser"].flops
    ours = results.of("koala:cpu").quantile(0.5)
    assert results.flops / results.peak.flops_per_second <= results.roofline_seconds < ours
    no_bound = Peak("float32", "float32", results.peak.flops_per_second, float("inf"))
    assert roofline_seconds(manifest, 2, no_bound) == pytest.approx(results.flops / results.peak.flops_per_second)


def test_interleaving_cancels_a_drift(paths: tuple[Path, str]) -> None:
    """The machine gets ever slower; the ratio of two backends stays what it is."""
    drifting = run(*paths, fakes("Drifting", "DriftingSlow", rounds=10, steps=1))
    quick, slow = (drifting.of(f"{FAKE}{name}") for name in ("Drifting", "DriftingSlow"))
    assert quick.warm_seconds[-1] > 1.1 * quick.warm_seconds[0], "it does drift"
    assert 1 / drifting.speedup(slow) == pytest.approx(2, rel=0.15)


def test_one_at_a_time(paths: tuple[Path, str]) -> None:
    reported: list[str] = []
    alone = run(*paths, fakes("Quick", "Slow", rounds=3, alone=True), reported.append)
    order = [line.rpartition(":")[2] for line in reported if line.startswith("round")]
    assert order == ["Quick"] * 2 + ["Slow"] * 2 + ["Quick"] * 3 + ["Slow"] * 3, "with a warm-up each time"
    assert [len(each.warm_seconds) for each in alone.measured] == [3, 3]
    assert [len(each.cold_seconds) for each in alone.measured] == [2, 2]
    assert "one at a time" in markdown(alone)


@pytest.mark.skipif(sys.platform == "win32", reason="the other Python is a shell script")
def test_another_python(paths: tuple[Path, str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$4" >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    plan = fakes("Quick", "Slow", rounds=2, pythons={f"{FAKE}Slow": str(python)})
    assert run(*paths, plan).not_measured == {}
    assert len((tmp_path / "used").read_text().splitlines()) == 2, "prepared and measured there, and it alone"


def test_every_way_of_showing_says_the_same(results: Results, tmp_path: Path) -> None:
    files = save(results, tmp_path / "out")
    assert load(tmp_path / "out" / "results.json") == results
    text, by_columns = markdown(results), rows(results)
    assert [*by_columns] == [SPEED_COLUMNS, PHASE_COLUMNS, COST_COLUMNS, VERSION_COLUMNS]
    for columns, each in by_columns.items():
        assert f"| {' | '.join(columns)} |" in text
        assert all(f"| {' | '.join(row)} |" in text for row in each)
    for shown, (columns, each) in zip(tables(results), by_columns.items(), strict=False):
        assert [str(column.header) for column in shown.columns] == [*columns]
        assert [next(iter(column.cells)) for column in shown.columns] == [*each[0]]
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
    (tmp_path / "b" / "results.md").rename(tmp_path / "b" / "not.json")
    for name, found in (
        ("results.json", "schema version 1"),
        ("not.json", "Extra data"),
        ("none.json", "No such"),
    ):
        with pytest.raises(ResultsError, match=f"expected a results.json of `koala bench`.*found .*{found}"):
            load(tmp_path / "b" / name)


def test_a_sweep_over_steps(paths: tuple[Path, str], tmp_path: Path) -> None:
    swept = sweep("steps", [1, 3], *paths, fakes("PerStep", "Prepared", rounds=2))
    one, three = swept.medians()[f"{FAKE}PerStep"]
    assert three / one == pytest.approx(3, rel=0.3)  # type: ignore[operator]
    assert [each.steps for each in swept.results] == [1, 3]
    made = save_sweep(swept, tmp_path)
    assert {path.name for path in made} == {
        f"sweep-steps{ending}" for ending in (".json", ".md", ".png", ".svg", "-dark.png", "-dark.svg")
    }
    text = (tmp_path / "sweep-steps.md").read_text()
    assert text.startswith("96 x 64 px, batch 1, guidance"), "steps are what varies"
    for row in (sweep_columns(swept), *sweep_rows(swept)):
        assert f"| {' | '.join(row)} |" in text


@pytest.mark.full
def test_sweeps_over_batches_and_sizes(paths: tuple[Path, str]) -> None:
    """Bundles are made for it; so is everybody's number and size of pictures."""
    plan = BenchOptions(names=("diffusers", "koala:cpu"), prompt="a cat", rounds=2, steps=1)
    shapes = {"batch": [(1, 64, 96), (2, 64, 96)], "size": [(1, 64, 64), (1, 128, 128)]}
    for kind, values in (("batch", [1, 2]), ("size", [64, 128])):
        swept: Sweep = sweep(kind, values, *paths, plan)
        assert [(p.batch, p.height, p.width) for p in (each.profile for each in swept.results)] == shapes[kind]
        for each in swept.results:
            assert each.not_measured == {}
            assert all((one.psnr or 0) > 40 for one in each.measured)


def test_the_command(paths: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", paths[1], str(paths[0]), "--backend", f"{FAKE}Quick", "--backend", "koala:rtx"]
    command += ["--no-reference", "--rounds", "2", "--output", str(tmp_path / "out")]
    assert run_app(command) == 0
    shown = capsys.readouterr().out
    assert f"{FAKE}Quick" in shown, "names are not cut"
    assert "not measured: koala:rtx (" in shown
    assert len([*(tmp_path / "out").iterdir()]) == 6
    assert run_app([*command, "--steps-sweep", "1,2"]) == 0
    assert "ms by denoising steps" in capsys.readouterr().out
    for wrong, said in (
        (["--rounds", "1"], "--rounds: expected 2 or more"),
        (["--steps-sweep", "1,x"], "--steps-sweep: expected whole numbers such as 1,2,4, found '1,x'"),
        (["--python", "optimum-onnx"], "--python: expected NAME=PATH of a Python, found 'optimum-onnx'"),
    ):
        assert run_app([*command, *wrong]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_nothing_to_measure_is_an_error(paths: tuple[Path, str]) -> None:
    with pytest.raises(ArgumentError, match="backend: expected one of diffusers, diffusers-compile, optimum-onnx"):
        run(*paths, BenchOptions(names=("difusers",)))
    with pytest.raises(KoalaError, match="expected one that runs, found koala:tensorrt: expected an NVIDIA GPU, fou"):
        run(*paths, BenchOptions(names=("koala:tensorrt",), reference=False))


def test_random_weights_need_a_preset(paths: tuple[Path, str]) -> None:
    with pytest.raises(ArgumentError, match="random_weights: expected a preset"):
        run(*paths, fakes("Quick", random_weights=True))


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.parent.name for path in PUBLISHED])
def test_the_page_says_what_was_measured(path: Path) -> None:
    """``results.md`` and its plots are made of ``results.json``, and docs/benchmarks.md includes them."""
    assert path.with_name("results.md").read_text(encoding="utf-8") == markdown(load(path))
    for plot in ("results.png", "results-dark.png"):
        assert path.with_name(plot).is_file()
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert f"<!-- results: {path.parent.name} -->" in page


def test_the_readme_says_what_was_measured(results: Results) -> None:
    """The README's table is made of koala-tiny's results.json; ``make bench`` writes both."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    published = readme_table(load(ROOT / "bench" / "results" / "cpu-koala-tiny" / "results.json"))
    assert replace_table(page, published) == page
    other = replace_table(page, readme_table(results))
    assert other != page
    assert replace_table(other, published) == page, "nothing but the table changes"
    slow = results.of(f"{FAKE}Slow")
    figures = (1e3 * slow.quantile(0.5), slow.host_bytes / 1e6, slow.install_bytes / 1e6)
    median, memory, install = (f"{figure:,.0f}" for figure in figures)
    assert f"| {FAKE}Slow | {median} | {slow.first_seconds:.1f} | {memory} | {install} |" in other
    for broken in (page.replace(BEGIN, ""), page.replace(END, "")):
        with pytest.raises(ArgumentError, match="found a page without them"):
            replace_table(broken, published)


@pytest.mark.full
def test_diffusers_eager_and_compiled(paths: tuple[Path, str]) -> None:
    plan = BenchOptions(names=("diffusers", "diffusers-compile", "koala:cpu"), prompt="a cat", rounds=2, steps=2)
    results = run(*paths, plan)
    assert results.not_measured == {}
    for each in results.measured:
        assert (each.psnr or 0) > 40
        assert all(seconds >= 0 for seconds in each.phase_seconds.values())
        assert each.phase_seconds["steps"] > 0


@pytest.mark.full
@pytest.mark.parametrize(("name", "folder"), [("optimum-onnx", "optimum"), ("openvino-genai", "openvino")])
def test_backends_with_a_python_of_their_own(name: str, folder: str, bundle: Callable[..., Path]) -> None:
    """With koala-tiny: on random weights OpenVINO GenAI differs from diffusers by more than rounding (41 dB)."""
    python = ROOT / "build" / folder / "bin" / "python"
    if not python.exists():
        pytest.skip(f"`make build/{folder}/ready` makes its environment")
    plan = BenchOptions(names=(name,), rounds=2, pythons={name: str(python)})
    results = run(bundle("koala-tiny"), str(CHECKPOINT), plan)
    assert results.not_measured == {}
    (measured,) = results.measured
    assert (measured.psnr or 0) > 45, "the same tokens, noise and sampler, in float32"
    assert all(measured.phase_seconds[phase] > 0 for phase in ("text", "steps", "vae"))
    assert measured.versions.keys() >= {name}
