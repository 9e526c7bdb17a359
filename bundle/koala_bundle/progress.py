"""How long work reports itself: two callables that every stage takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[str], None]
"""Called with one line per piece of work."""
Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and how much of it is, from 0 to 1."""


def no_report(line: str) -> None:
    """Report nothing."""


def no_progress(what: str, done: float) -> None:
    """Show nothing."""
