"""Builds the documentation site into build/site; `make docs` runs it.

Stages docs/ into build/docs, with the pictures it shows and the error messages of tests/system/errors.txt, has
Zensical build it strictly, and checks every link and picture of the result.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
ERRORS_MARK = "<!-- errors -->"
# Each group of errors.txt begins with the case named here.
GROUPS = {
    "Checkpoints": "missing config",
    "Options of an export": "height",
    "Places to write to": "bundle path is a file",
    "Bundles and engines": "no bundle",
    "Building engines": "unknown target",
    "Drawing": "steps 0",
}
_SENTENCE = re.compile(r"(?P<what>.+?): expected (?P<expected>.+?), found (?P<found>.+?); (?P<fix>.+)\.")
_PLACEHOLDERS = {
    "{tmp}/bundle": "BUNDLE",
    "{tmp}/checkpoint": "CHECKPOINT",
    "{tmp}": "FOLDER",
    "{digest}": "DIGEST",
    "{n}": "N",
}
_RESULTS = re.compile(r"<!-- results: (?P<name>[\w-]+) -->")
_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>(?:\.\./)+[^)#]+)(?P<scheme>#[\w-]+)?\)")


def errors_markdown(errors: str) -> str:
    """Return the cases of errors.txt (lines of ``case: sentence``) as groups of definition lists.

    Raises ValueError for a sentence without the four parts, or a group whose first case is missing.
    """
    cases = dict(line.split(": ", 1) for line in errors.splitlines() if line)
    if missing := [case for case in GROUPS.values() if case not in cases]:
        raise ValueError(f"no case {missing[0]!r} in errors.txt, with which a group begins")
    headings = {case: heading for heading, case in GROUPS.items()}
    lines: list[str] = []
    for case, sentence in cases.items():
        for placeholder, shown in _PLACEHOLDERS.items():
            sentence = sentence.replace(placeholder, shown)
        parts = _SENTENCE.fullmatch(sentence)
        if parts is None:
            raise ValueError(f"{case}: not what, expected, found and fix: {sentence}")
        if case in headings:
            lines += [f"### {headings[case]}", ""]
        what, expected, found, fix = (_escaped(part) for part in parts.groups())
        lines += [
            f"{_escaped(case[0].upper() + case[1:])}",
            f":   {what}<br>*expected* {expected}<br>*found* {found}<br>*fix* {fix}",
            "",
        ]
    return "\n".join(lines)


def results_markdown(root: Path, name: str) -> str:
    """Return the plot and the tables of bench/results/``name``, for a page of docs/."""
    plots = [
        f"../bench/results/{name}/results{dark}.png#only-{scheme}"
        for dark, scheme in (("", "light"), ("-dark", "dark"))
    ]
    shown = [f"![The results below as a plot]({plot})" for plot in plots]
    return "\n\n".join([*shown, (root / "bench" / "results" / name / "results.md").read_text("utf-8")])


def _escaped(text: str) -> str:
    """Keep Markdown from reading marks in ``text``, except in code between backticks."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([\\*_<\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def stage(root: Path, folder: Path) -> None:
    """Write the pages of ``root``/docs to ``folder``, complete with what they show from elsewhere in ``root``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copyfile(root / name, folder / name.lower())
    for page in folder.rglob("*.md"):
        source = root / "docs" / page.relative_to(folder)
        text = _RESULTS.sub(lambda mark: results_markdown(root, mark["name"]), page.read_text("utf-8"))

        def shown(image: re.Match[str], page: Path = page, source: Path = source) -> str:
            picture = (source.parent / image["target"]).resolve()
            copy = folder / "pictures" / picture.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, copy)
            target = Path(os.path.relpath(copy, page.parent)).as_posix()
            return f"![{image['alt']}]({target}{image['scheme'] or ''})"

        text = _IMAGE.sub(shown, text)
        if ERRORS_MARK in text:
            text = text.replace(ERRORS_MARK, errors_markdown((root / "tests/system/errors.txt").read_text("utf-8")))
        page.write_text(text, "utf-8")


class _Page(HTMLParser):
    """The ids of a page and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def broken_links(site: Path) -> list[str]:
    """Return every link and picture of a built site that leads nowhere; other sites are not asked."""
    pages = {path: _Page(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def main() -> int:
    """Build and check; return the exit code."""
    stage(ROOT, ROOT / "build" / "docs")
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False)
    if built.returncode:
        return built.returncode
    for link in (broken := broken_links(ROOT / "build" / "site")):
        sys.stderr.write(f"broken link: {link}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
