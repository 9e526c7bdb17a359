"""Tables on a narrow screen, and text that looks like markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from koala_bench.results import load
from koala_bench.tables import rows, tables
from koala_cli.main import run_app
from koala_cli.screen import note, say, say_figures, stdout, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "cpu-koala-700m-256px" / "results.json"


def test_figures_of_bench_are_whole_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "_width", 80)
    results = load(RESULTS)
    for each in tables(results):
        say_figures(each)
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split("  ") if word}
    for columns, figures in rows(results).items():
        if columns[1] != "versions":
            assert {cell for row in (columns, *figures) for cell in row} <= {word.strip() for word in words}


def test_a_table_that_fits_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    figures = table("backend", "ms", "MB", figures=True)
    figures.add_row("koala:cpu", "1.0", "140")
    say_figures(figures)
    said = capsys.readouterr().out
    stdout.print(figures)
    assert capsys.readouterr().out == said


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdout, "_width", 200)
    text = "pip install koala-trt[tensorrt], [bold]not bold[/], :koala:"
    shown = table("[name]", text)
    shown.add_row(text, text)
    say(text)
    note(text)
    stdout.print(shown)
    said = capsys.readouterr()
    assert said.out.count(text) == 4
    assert said.err.count(text) == 1


def test_doctor_keeps_the_brackets_of_extras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koala_engines.availability.obstacles", lambda _: {})
    monkeypatch.setattr("koala_cli.commands.doctor._EXPORT_NEEDS", ("tensorrt-rtx-cu12",))
    monkeypatch.setattr("koala_cli.commands.doctor._PACKAGES", ("tensorrt-rtx-cu12",))
    assert run_app(["doctor"]) == 0
    assert "koala-trt[export]" in capsys.readouterr().out
