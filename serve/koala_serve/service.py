"""Everything that is served: models by name, and the jobs whose pictures can still be fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from koala_serve.errors import CancelledError, StoppingError, UnknownJobError, UnknownModelError
from koala_serve.image_request import ImageRequest
from koala_serve.job import Job
from koala_serve.metrics import Metrics
from koala_serve.model import Model
from koala_serve.settings import Settings

_POLL = 0.1  # seconds


class Service:
    """Belongs to the event loop's thread."""

    def __init__(self, models: Sequence[Model], settings: Settings, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.settings, self.metrics = settings, metrics
        self.is_stopping = False
        self._kept: dict[str, Job] = {}

    @property
    def is_ready(self) -> bool:
        """Whether every model can be drawn, and the server is to stay."""
        return not self.is_stopping and all(model.is_ready for model in self.models.values())

    def model(self, name: str | None) -> Model:
        """Return a model by its name, the first for None. Raises UnknownModelError."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModelError(
                "model", expected=" or ".join(self.models), found=repr(name), fix="name one of these, or leave it out"
            )
        return self.models[name]

    async def submit(self, request: ImageRequest, *, watched: bool = False, keep: bool = False) -> Job:
        """Put a request into its model's queue. With ``keep`` its pictures can be fetched later, for a time.

        Raises KoalaError for one that is not accepted.
        """
        if self.is_stopping:
            raise StoppingError(
                "the server", expected="one that stays", found="one that is stopping", fix="send the request again"
            )
        job = await self.model(request.model).submit(request, watched=watched)
        if keep:
            self._kept[job.id] = job
            self._forget()
        return job

    def job(self, number: str) -> Job:
        """Return a job that is kept. Raises UnknownJobError."""
        self._forget()
        if number not in self._kept:
            raise UnknownJobError(
                "the job",
                expected="one of the last that were sent",
                found=repr(number)[:80],
                fix="fetch its pictures sooner, or send it again",
            )
        return self._kept[number]

    def cancel(self, job: Job) -> None:
        """Give a job up; one that is over stays as it is."""
        job.fail(CancelledError("the request", expected="pictures", found="that it was cancelled", fix="send it again"))

    async def finish(self) -> None:
        """Take nothing more, and wait until what was accepted is done, or for as long as the settings allow."""
        self.is_stopping = True
        until = time.monotonic() + self.settings.drain
        while time.monotonic() < until and not all(model.is_idle for model in self.models.values()):
            await asyncio.sleep(_POLL)

    def _forget(self) -> None:
        """Give up finished jobs that are old, then the oldest while all take too much memory."""
        now, total = time.time(), sum(_nbytes(job) for job in self._kept.values())
        for number, job in [*self._kept.items()]:
            if job.ended is None:
                continue
            if now - job.ended > self.settings.kept_seconds or total > self.settings.kept_bytes:
                total -= _nbytes(job)
                del self._kept[number]


def _nbytes(job: Job) -> int:
    return sum(len(picture.file or b"") for picture in job.pictures)
