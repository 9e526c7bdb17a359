"""What draws: it takes batches, one after the other, and answers with events. A process here, a replica with Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from koala_bundle.errors import KoalaError


@dataclass(frozen=True)
class Row:
    """One picture of a batch. ``previews``: after which steps it is shown, counted from 0."""

    prompt: str
    negative_prompt: str | None
    seed: int
    image: bytes | None
    mask: bytes | None
    format: str
    compression: int | None
    previews: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together; ``shared`` are the arguments of the pipeline call that they have in common.

    ``watched``: whether anybody wants to know of the steps.
    """

    number: int
    rows: tuple[Row, ...]
    shared: Mapping[str, Any]
    watched: bool


@dataclass(frozen=True)
class Stepped:
    """Step ``index`` of ``count`` is done; ``previews`` are JPEG files by row."""

    index: int
    count: int
    previews: Mapping[int, bytes]


@dataclass(frozen=True)
class Free:
    """The batch is drawn in ``seconds`` and the next may come; its files are still being written."""

    seconds: float


@dataclass(frozen=True)
class Finished:
    """Picture ``row`` as a file that was written in ``seconds``; its recipe as JSON and as A1111's text."""

    row: int
    file: bytes
    recipe: str
    parameters: str
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Picture ``row`` will not be there."""

    row: int
    error: KoalaError


Event: TypeAlias = Stepped | Free | Finished | Refused


class WorkerDied(Exception):  # noqa: N818 - what happened, not a mistake of the caller's
    """A worker ended before it had finished a batch, which may be drawn again elsewhere."""


class Worker(Protocol):
    """Draws one batch at a time, and writes the files of the last one beside it."""

    async def open(self) -> None:
        """Be ready to draw; starts anew what has ended. Raises KoalaError for a bundle that cannot be drawn."""

    def draw(self, batch: Batch) -> AsyncGenerator[Event]:
        """Yield what happens until every row is finished or refused. Raises WorkerDied."""

    def cancel(self, number: int) -> None:
        """Give the batch up after the step that is being drawn; nothing of it comes any more."""

    async def close(self) -> None:
        """End at once."""
