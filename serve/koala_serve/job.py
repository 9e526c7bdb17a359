"""A request on its way: where its pictures are, and who is told."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from koala_bundle.errors import KoalaError
from koala_serve.errors import CancelledError
from koala_serve.image_request import ImageRequest

_OFTEN, _SELDOM = 1.0, 15.0  # seconds between two words of a job that waits, and of one that is drawn


class State(StrEnum):
    """Of a job."""

    QUEUED = "queued"
    GENERATING = "generating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Picture:
    """One picture of a job. ``recipe`` is JSON, ``parameters`` the same as A1111's text;
    ``attempts``: how often its drawing was begun; ``step``: how
    many of the job's ``steps`` are done."""

    job: Job
    index: int
    file: bytes | None = None
    recipe: str = ""
    parameters: str = ""
    attempts: int = 0
    step: int = 0


@dataclass(frozen=True)
class Progress:
    """``share`` of a job is done; ``preview`` is a JPEG file of picture ``index``, the ``preview_number``-th of it."""

    share: float
    index: int = 0
    preview: bytes | None = None
    preview_number: int = 0


@dataclass
class Job:
    """A request, its pictures, and how far they are. Belongs to the event loop's thread."""

    request: ImageRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: float = field(default_factory=time.time)
    state: State = State.QUEUED
    error: KoalaError | None = None
    step: int = 0
    steps: int = 0
    ended: float | None = None
    preview: bytes | None = None
    watched: bool = False
    tokens: int = 0
    on_end: Callable[[Job], None] = lambda job: None

    def __post_init__(self) -> None:
        self.pictures = [Picture(self, index) for index in range(self.request.count)]
        self._changed = asyncio.Event()
        self._previews: list[Progress] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None

    @property
    def share(self) -> float:
        """How much of the job is done, 0 to 1."""
        done = (1.0 if picture.file is not None else picture.step / (self.steps or 1) for picture in self.pictures)
        return 1.0 if self.state is State.COMPLETED else min(sum(done) / len(self.pictures), 0.99)

    def begin(self) -> None:
        """A picture of it is being drawn."""
        if not self.is_over and self.state is not State.GENERATING:
            self.state = State.GENERATING
            self._tell()

    def stepped(self, index: int, step: int, steps: int, preview: bytes | None) -> None:
        """Step number ``step`` of ``steps`` of picture ``index`` is done."""
        if self.is_over:
            return
        self.pictures[index].step, self.step, self.steps = step, step, steps
        if preview is not None:
            self.preview = preview
            number = sum(each.index == index for each in self._previews)
            self._previews.append(Progress(self.share, index, preview, number))
        self._tell()

    def finish(self, index: int, file: bytes, recipe: str, parameters: str) -> None:
        """Picture ``index`` is there; the job is, with the last of them."""
        if self.is_over:
            return
        picture = self.pictures[index]
        picture.file, picture.recipe, picture.parameters = file, recipe, parameters
        if all(picture.file is not None for picture in self.pictures):
            self._end(State.COMPLETED)
        else:
            self._tell()

    def fail(self, error: KoalaError) -> None:
        """End without all pictures."""
        if not self.is_over:
            self.error = error
            self._end(State.CANCELLED if isinstance(error, CancelledError) else State.FAILED)

    async def result(self) -> list[Picture]:
        """Wait for the pictures. Raises KoalaError if they will not be there."""
        while not self.is_over:
            await self._changed.wait()
        if self.error is not None:
            raise self.error
        return self.pictures

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield every preview, and the share that is done whenever it changes, and now and then, until the end."""
        shown = 0
        while True:
            changed = self._changed
            while shown < len(self._previews):
                shown += 1
                yield self._previews[shown - 1]
            if self.is_over:
                return
            yield Progress(self.share)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _OFTEN if self.state is State.QUEUED else _SELDOM)

    def _end(self, state: State) -> None:
        self.state, self.ended = state, time.time()
        self.preview = None
        self._tell()
        self.on_end(self)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
