"""What ``koala inspect`` shows of engines, on a bundle of a fleet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from koala_bundle.engine_record import ENGINE_RECORD, engine_folder, read_engine_record
from koala_bundle.files import write_sealed
from koala_bundle.targets import RTX
from koala_cli.main import run_app
from koala_engines.build import build_engines
from tests.support.fleet import Compiled, change_component, make_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Compiled(monkeypatch)
    path = make_bundle(tmp_path / "bundle")
    build_engines(path, RTX)
    return path


def test_what_tuning_compared(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["inspect", str(bundle)]) == 0
    assert "tuned" not in capsys.readouterr().out
    record = read_engine_record(bundle, RTX)
    tuned = replace(record.plans["denoiser"], trials=(0.0123, 0.0131, 0.0145))
    write_sealed(engine_folder(bundle, RTX) / ENGINE_RECORD, replace(record, plans=record.plans | {"denoiser": tuned}))
    assert run_app(["inspect", str(bundle)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rtx", "denoiser", "3", "12.300", "ms", "14.500", "ms"] in lines
    assert run_app(["inspect", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["engines"]["rtx"]["plans"]["denoiser"]["trials"]
    assert shown == [0.0123, 0.0131, 0.0145]


def test_engines_of_another_graph_are_stale(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["inspect", str(bundle)]) == 0
    assert "current" in capsys.readouterr().out
    change_component(bundle, "denoiser")
    assert run_app(["inspect", str(bundle)]) == 0
    assert "stale: ONNX" in " ".join(capsys.readouterr().out.split())
