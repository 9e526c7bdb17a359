"""A file of prompts to pictures, on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from koala_bundle.errors import ArgumentError
from koala_fleet.prompts import PromptRow, read_prompts
from koala_fleet.results import Results
from koala_runtime import Pipeline
from koala_serve.batching import make_row
from koala_serve.drawing import Drawer
from koala_serve.worker import Batch, Event, Finished, Refused

_HELD = 64  # batches that wait for rows of their shape, before one of them is drawn as it is
Unit: TypeAlias = tuple[PromptRow, ...]
"""Rows that are drawn together."""
Update: TypeAlias = Callable[[str, float], None]


def check_prompts(path: Path, seed: int = 0) -> tuple[int, str]:
    """Read a file of prompts to its end; return how many rows it has and a SHA-256 of them, their pictures included.

    Raises ArgumentError.
    """
    count, digest = 0, hashlib.sha256()
    for row in read_prompts(path, seed):
        count += 1
        digest.update(repr(row).encode())
    if not count:
        raise ArgumentError(str(path), expected="prompts", found="none", fix="write one per line")
    return count, digest.hexdigest()


def units(rows: Iterable[PromptRow], batch: int) -> Iterator[Unit]:
    """Put rows of equal shape together, up to ``batch`` of them; holds few of them at a time."""
    held: dict[Hashable, list[PromptRow]] = {}
    for row in rows:
        shape = row.request.shape
        held.setdefault(shape, []).append(row)
        if len(held[shape]) == batch:
            yield tuple(held.pop(shape))
        elif len(held) > _HELD:
            yield tuple(held.pop(next(iter(held))))
    yield from map(tuple, held.values())


def draw_unit(drawer: Drawer, unit: Unit, tell: Callable[[PromptRow, Event], None]) -> None:
    """Draw rows together; ``tell`` is told of each, Finished or Refused, in the thread that writes files."""

    def send(event: Event) -> None:
        if isinstance(event, Finished | Refused):
            tell(unit[event.row], event)

    rows = tuple(make_row(row.request, 0) for row in unit)
    drawer.draw(Batch(0, rows, unit[0].request.shared, watched=False), send, lambda: False)


def keep(results: Results, row: PromptRow, event: Event) -> None:
    """Write what became of a row."""
    if isinstance(event, Finished):
        results.finish(row, event.file)
    elif isinstance(event, Refused):
        results.fail(row, event.error)


def run_local(
    bundle: Path, prompts: Path, results: Results, seed: int, options: Mapping[str, Any], count: int, update: Update
) -> None:
    """Draw every row that has no result yet. Raises KoalaError if the bundle cannot be opened or a device fails."""
    errors: list[BaseException] = []

    def tell(row: PromptRow, event: Event) -> None:
        try:
            keep(results, row, event)
        except Exception as error:  # nobody looks at what this thread raises
            errors.append(error)
        update(f"{len(results.done)} of {count}", len(results.done) / count)

    left = (row for row in read_prompts(prompts, seed) if row.index not in results.done)
    with Pipeline(bundle, **options) as pipeline, closing(Drawer(pipeline)) as drawer:
        for unit in units(left, pipeline.manifest.profile.batch):
            draw_unit(drawer, unit, tell)
            if errors:
                raise errors[0]
    if errors:
        raise errors[0]
