"""``koala build``: export and engines in one go, each skipped if it is up to date."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bundle.manifest import read_manifest
from koala_cli.main import run_app

SHAPE = "koala-700m-like"
OPTIONS = ("--height", "64", "--width", "96", "--precision", "fp32", "--cfg", "--steps", "4", "--target", "cpu")
EXPORTED = "up to date (same checkpoint, options and versions)"
BUILT = "up to date (same ONNX, compiler and options)"


def build(source: Path, bundle: Path, *options: str) -> int:
    return run_app(["build", str(source), str(bundle), *OPTIONS, *options])


def test_each_part_is_skipped_with_the_reason(
    bundle: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(bundle(SHAPE), tmp_path / "bundle")
    source = checkpoint(SHAPE)
    assert build(source, copy) == 0
    assert capsys.readouterr().out.splitlines() == [f"{copy}: {EXPORTED}", f"{copy}: cpu: {BUILT}"]
    shutil.rmtree(copy / "engines")
    assert build(source, copy) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"{copy}: {EXPORTED}", f"{copy}: cpu: built"]
    assert "there are none yet" in shown.err


def test_the_options_of_both_halves_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, tmp_path / "bundle", "--precision", "int8") == 2
    assert build(tmp_path, tmp_path / "bundle", "--target", "metal") == 2
    said = capsys.readouterr().err
    assert "error --precision: expected fp16 or fp32, found 'int8'" in said
    assert "error --target: expected tensorrt or rtx or cuda or cpu, found 'metal'" in said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.full
def test_from_a_checkpoint_to_engines(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "bundle"
    assert build(checkpoint(SHAPE), new) == 0
    assert capsys.readouterr().out.splitlines() == [f"{new}: exported", f"{new}: cpu: built"]
    assert read_manifest(new) == read_manifest(bundle(SHAPE))
