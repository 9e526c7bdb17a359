"""What the subcommands share on screen: results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

# Paths, prompts and package names such as koala-trt[rtx] are text, never markup.
stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)

_GAP = 3  # between two columns of ``table``


def set_encoding(stream: TextIO | None) -> None:
    """Let a console show what its encoding has and escape the rest; bytes of a path's name are left as they are."""
    if not isinstance(stream, TextIOWrapper):  # closed, or a test's
        return
    if sys.platform == "win32":  # consoles there default to a code page that cannot show the tables' lines
        stream.reconfigure(encoding="utf-8")
    codecs.register_error("koala", _escaped)
    stream.reconfigure(errors="koala")


def _escaped(error: UnicodeError) -> tuple[bytes | str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a file name that is not text
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.encode("ascii", "backslashreplace"), error.start + 1


def say(line: str) -> None:
    """Print a line of the result, as long as it is."""
    stdout.print(line, soft_wrap=True)


def note(line: str) -> None:
    """Print a message beside the result, as long as it is."""
    stderr.print(line, soft_wrap=True)


def say_json(value: Any) -> None:
    """Print a result as JSON."""
    ascii_only = not (stdout.encoding or "").lower().startswith("utf")
    stdout.print_json(json.dumps(value), ensure_ascii=ascii_only)


def megabytes(size: int) -> str:
    """``size`` in bytes as text in MB."""
    return f"{size / 1e6:,.1f} MB"


def verdict(passed: bool) -> Text:
    """Return whether something passed, in a word."""
    return Text("passed", "green") if passed else Text("failed", "red")


def table(*columns: str, figures: bool = False) -> Table:
    """Return an empty table that is as narrow as its text; ``figures``: all columns but the first are numbers."""
    empty = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for column in empty.columns:
        column.overflow = "fold"
    for column in empty.columns[1:]:
        column.justify = "right" if figures else "left"
    return empty


def say_figures(figures: Table) -> None:
    """Print a table of text cells; one that is wider than the screen in parts that repeat the first column."""
    names, *columns = figures.columns
    widths = {column.header: max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in columns}
    room = stdout.width - max(cell_len(str(cell)) for cell in (names.header, *names.cells)) - 2
    parts: list[list[Column]] = [[]]
    for column in columns:
        if parts[-1] and sum(_GAP + widths[each.header] for each in (*parts[-1], column)) > room:
            parts.append([])
        parts[-1].append(column)
    for part in parts:
        shown = table(*(str(column.header) for column in (names, *part)), figures=True)
        for row in zip(*(column.cells for column in (names, *part)), strict=True):
            shown.add_row(*row)
        stdout.print(shown)


@contextmanager
def progress_bar(*, unbounded: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Show one line of progress while the block runs; yields ``update(what, part done from 0 to 1)``."""
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    bars = [] if unbounded else [BarColumn(), TaskProgressColumn()]
    with Progress(*columns, *bars, TimeElapsedColumn(), console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None if unbounded else 1.0)

        def update(what: str, done: float) -> None:
            if unbounded:
                bar.update(task, description=what)
            else:
                bar.update(task, description=what, completed=done)

        yield update


@contextmanager
def reported_lines() -> Iterator[Callable[[str], None]]:
    """A spinner with the line last reported; each line stays on screen with the seconds since the start."""
    started = time.monotonic()
    with progress_bar(unbounded=True) as update:

        def report(line: str) -> None:
            seconds = Text(f"{time.monotonic() - started:7.1f} s", "dim")
            stderr.print(Text.assemble(seconds, "  ", line), soft_wrap=True)
            update(line, 0.0)

        yield report
