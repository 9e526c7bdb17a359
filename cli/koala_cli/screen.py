"""What the subcommands share on screen: results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def megabytes(size: int) -> str:
    """``size`` in bytes as text in MB."""
    return f"{size / 1e6:,.1f} MB"


def plain(text: str) -> str:
    """Keep rich from reading brackets in a path or value as markup."""
    return text.replace("[", r"\[")


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
def working() -> Iterator[Callable[[str], None]]:
    """A spinner with the line last reported; each line stays on screen with the seconds since the start."""
    started = time.monotonic()
    with progress_bar(unbounded=True) as update:

        def report(line: str) -> None:
            stderr.print(f"[dim]{time.monotonic() - started:7.1f} s[/]  {plain(line)}", soft_wrap=True)
            update(line, 0.0)

        yield report
