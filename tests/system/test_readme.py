"""Every command of the README is run: here as written, or by CI where it is one of make's own.

The hub is not reached: its local cache is filled with a small checkpoint under the name that the README uses.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from koala_bench.results import load
from koala_cli.main import run_app
from koala_export.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_BY_CI = ("make image", "make test", "make check", "make test-full")
COMMIT = "0" * 40


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> tuple[Path, dict[str, str]]:
    """A folder with this environment and Makefile, and a hub cache that holds koala-lightning-700m, much smaller."""
    folder = tmp_path_factory.mktemp("readme")
    repository = folder / "hub" / "models--etri-vilab--koala-lightning-700m"
    shutil.copytree(checkpoint("koala-700m-like"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)
    tiny = Path("examples", "koala-tiny", "checkpoint")
    shutil.copytree(ROOT / tiny, folder / tiny)
    if (ROOT / ".venv").exists():
        (folder / ".venv").symlink_to(ROOT / ".venv")
    programs = str(Path(sys.executable).parent)
    environment = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return folder, os.environ | environment | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def answers(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Check that a server answers, and ends when it is told to."""
    process = subprocess.Popen(shlex.split(command), cwd=folder, env=environment)
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen("http://localhost:8000/readyz", timeout=5):
                break
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_command(workspace: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workspace
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert COMMANDS
    for command in COMMANDS:
        if command in RUN_BY_CI:
            assert command in ci
            continue
        if command.startswith("make ") and not (ROOT / ".venv" / "ready").exists():
            continue  # the environment is not make's; CI's is
        if command.startswith("koala serve"):
            answers(command, folder, environment)
            continue
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "koala.png").stat().st_size > 10_000


@pytest.mark.full
def test_the_python_example(workspace: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workspace  # with the bundle that the commands above made
    (folder / "koala.png").unlink()
    (example,) = blocks("python")
    subprocess.run([sys.executable, "-c", example], cwd=folder, env=environment, check=True)
    assert (folder / "koala.png").stat().st_size > 10_000


@pytest.mark.full
@pytest.mark.skipif(not (ROOT / ".venv" / "ready").exists(), reason="the environment is not make's; CI's is")
def test_bench_gpu_works_to_the_last_file(workspace: tuple[Path, dict[str, str]]) -> None:
    """A dry run: the simulated GPU in the place of one, and koala-tiny in the place of a large model."""
    folder, environment = workspace
    options = ["MODEL=examples/koala-tiny/checkpoint", "WEIGHTS=", "RESULTS=measured-gpu", "STEPS=1,2"]
    options += ["BENCH=--backend koala:simulated --backend onnxruntime:cpu --rounds 2"]
    subprocess.run(["make", "bench-gpu", *options], cwd=folder, env=environment, check=True)
    made = {path.name for path in (folder / "measured-gpu").iterdir()}
    endings = (".json", ".md", ".png", ".svg", "-dark.png", "-dark.svg")
    assert made == {stem + ending for stem in ("results", "sweep-steps") for ending in endings}
    results = load(folder / "measured-gpu" / "results.json")
    assert {each.name for each in results.measured} == {"koala:simulated", "onnxruntime:cpu"}
    assert results.not_measured == {}
    assert all((each.psnr or 0) > 40 for each in results.measured)


@pytest.mark.full
def test_what_the_model_card_recommends_reached_the_bundle(workspace: tuple[Path, dict[str, str]]) -> None:
    from koala_bundle.manifest import read_manifest

    manifest = read_manifest(workspace[0] / "bundle")
    assert (manifest.sampling.num_inference_steps, manifest.sampling.guidance_scale) == (10, 3.5)
    assert manifest.spec.scheduler["timestep_spacing"] == "trailing"


def test_every_preset_and_subcommand_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PRESETS:
        assert f"`{name}`" in README
    assert run_app(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("build", "export", "engines", "run", "verify", "bench", "compare", "inspect", "doctor"):
        assert f"koala {command}" in README
        assert command in shown


def test_ci_runs_what_people_run() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make image", "make test", "make check", "make test-full"} <= {*ci}
