"""The site's own scripts: the list of errors, staging, and the check of links."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ERRORS = (ROOT / "tests" / "system" / "errors.txt").read_text("utf-8")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = _script()


def test_every_error_has_its_entry_and_every_group_its_heading() -> None:
    lines = site.errors_markdown(ERRORS).splitlines()
    entries = [line for line in lines if line.startswith(":   ")]
    assert len(entries) == len([line for line in ERRORS.splitlines() if line])
    assert [line.removeprefix("### ") for line in lines if line.startswith("###")] == [*site.GROUPS]
    assert all(part in entry for entry in entries for part in ("<br>*expected* ", "<br>*found* ", "<br>*fix* "))
    assert not any("{" in line for line in lines), "a placeholder is left"


def test_marks_in_a_sentence_stay_text() -> None:
    groups = "".join(f"{case}: x: expected a, found b; do c.\n" for case in site.GROUPS.values())
    text = site.errors_markdown(groups + "case: a_b*: expected `x_y`, found <z>; do [it].\n")
    assert r":   a\_b\*<br>*expected* `x_y`<br>*found* \<z><br>*fix* do \[it\]" in text


def test_a_sentence_without_its_four_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="bad case"):
        site.errors_markdown(ERRORS + "bad case: something went wrong.\n")


def test_a_group_that_lost_its_first_case_is_refused() -> None:
    with pytest.raises(ValueError, match="missing config"):
        site.errors_markdown(ERRORS.replace("missing config:", "no config:"))


def test_staged_pages_have_what_they_show(tmp_path: Path) -> None:
    site.stage(ROOT, tmp_path / "docs")
    troubleshooting = (tmp_path / "docs" / "troubleshooting.md").read_text("utf-8")
    assert site.ERRORS_MARK not in troubleshooting
    assert "### Checkpoints" in troubleshooting
    benchmarks = (tmp_path / "docs" / "benchmarks.md").read_text("utf-8")
    for name in ("cpu-koala-tiny", "cpu-koala-700m-256px"):
        plot = f"pictures/bench/results/{name}/results-dark.png"
        assert f"({plot}#only-dark)" in benchmarks
        assert (tmp_path / "docs" / plot).read_bytes() == (
            ROOT / "bench/results" / name / "results-dark.png"
        ).read_bytes()
        assert (ROOT / "bench/results" / name / "results.md").read_text("utf-8") in benchmarks
    assert (tmp_path / "docs" / "contributing.md").is_file()


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ('<a href="other/">', False),
        ('<a href="other/#there">', False),
        ('<a href="other/#nowhere">', True),
        ('<a href="#here">', False),
        ('<a href="#nowhere">', True),
        ('<a href="gone/">', True),
        ('<img src="picture.png">', False),
        ('<img src="gone.png">', True),
        ('<a href="https://example.org/gone">', False),
    ],
)
def test_links_of_a_built_site(tmp_path: Path, link: str, broken: bool) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "index.html").write_text(f'<p id="here">{link}</p>')
    (tmp_path / "other" / "index.html").write_text('<p id="there">')
    (tmp_path / "picture.png").touch()
    assert bool(site.broken_links(tmp_path)) is broken


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text("utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f'"{page}"' not in navigation] == []
