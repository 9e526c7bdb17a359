"""A bundle that is served: its queue, and the workers that draw from it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from koala_bundle.errors import DeviceError, KoalaError
from koala_serve.batching import make_row
from koala_serve.checking import RequestChecker
from koala_serve.errors import DeadlineError, QueueFullError
from koala_serve.image_request import ImageRequest
from koala_serve.job import Job, Picture, State
from koala_serve.metrics import Metrics
from koala_serve.settings import Settings
from koala_serve.worker import Batch, Event, Finished, Free, Stepped, Worker, WorkerDied

_ATTEMPTS = 3  # of a picture whose workers die
_SMOOTHING = 0.2  # weight of the newest batch in the mean time of one
_log = logging.getLogger(__name__)


@dataclass
class _Drawing:
    """A batch at a worker; ``patience`` runs out if it does not stop when nobody waits for it any more."""

    worker: Worker
    pictures: list[Picture]
    patience: asyncio.TimerHandle | None = None


class Model:
    """One bundle. What is not said to run in a thread belongs to the event loop's."""

    def __init__(
        self, name: str, checker: RequestChecker, workers: Sequence[Worker], settings: Settings, metrics: Metrics
    ) -> None:
        self.name, self.checker = name, checker
        self._workers, self._settings, self._metrics = workers, settings, metrics
        self._waiting: deque[Picture] = deque()
        self._promised: deque[tuple[float, int]] = deque()  # when room was promised, and for how many pictures
        self._more = asyncio.Event()
        self._drawing: dict[int, _Drawing] = {}  # by the number of the batch
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._seconds = 0.0  # that a batch takes, of late
        self._ready: set[Worker] = set()
        self.problem: KoalaError | None = None
        self.created, self.digest = int(time.time()), checker.digest

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker that can draw."""
        return bool(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is drawn."""
        return not self._waiting and not self._drawing

    def start(self) -> None:
        """Let the workers draw."""
        for worker in self._workers:
            self._spawn(self._serve(worker))

    async def close(self) -> None:
        """End the workers at once."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))

    async def submit(self, request: ImageRequest, *, watched: bool = False) -> Job:
        """Put a request into the queue. Raises ArgumentError for what cannot be drawn, and QueueFullError."""
        self.checker.check_limits(request)
        self._check_room(request.count)
        tokens = await asyncio.to_thread(self.checker.check, request)
        self._check_room(request.count)  # others may have come in the meantime
        job = Job(request, tokens=tokens, watched=watched)
        deadline = asyncio.get_running_loop().call_later(self._settings.deadline, self._give_up, job)
        job.on_end = lambda job: self._ended(job, deadline)
        self._waiting.extend(job.pictures)
        self._waiting_changed()
        return job

    def position(self, job: Job) -> int:
        """Return how many pictures of others come before the first of a job that is still waiting."""
        return next((index for index, picture in enumerate(self._waiting) if picture.job is job), 0)

    def _check_room(self, count: int) -> None:
        waiting, bound = len(self._waiting), self._settings.queue
        if waiting + count <= bound:
            return
        now = time.monotonic()
        while self._promised and self._promised[0][0] <= now:
            self._promised.popleft()
        # Those that were refused before and come back are ahead, so that not all come back at once.
        ahead = waiting + count - bound + sum(promised for _, promised in self._promised)
        batches = math.ceil(ahead / (self.checker.manifest.profile.batch * len(self._workers)))
        seconds = max(1, math.ceil(batches * self._seconds))
        self._promised.append((now + seconds, count))
        raise QueueFullError(waiting, bound, seconds)

    def _waiting_changed(self) -> None:
        self._metrics.waiting.labels(self.name).set(len(self._waiting))
        if self._waiting:
            self._more.set()

    def _give_up(self, job: Job) -> None:
        limit = self._settings.deadline
        job.fail(
            DeadlineError(
                "the request",
                expected=f"pictures within {limit:g} s",
                found=f"{sum(each.file is not None for each in job.pictures)} of {job.request.count}",
                fix="send it again when fewer requests wait, or ask for fewer pictures or steps",
            )
        )

    def _ended(self, job: Job, deadline: asyncio.TimerHandle) -> None:
        """Stop drawing for a job that is over."""
        deadline.cancel()
        self._metrics.requests.labels(self.name, job.state.value).inc()
        if job.state is State.COMPLETED:
            self._metrics.latency.labels(self.name).observe(time.time() - job.created)
            return
        self._waiting = deque(picture for picture in self._waiting if picture.job is not job)
        self._waiting_changed()
        for number, drawing in self._drawing.items():
            if drawing.patience is None and all(picture.job.is_over for picture in drawing.pictures):
                drawing.worker.cancel(number)
                drawing.patience = asyncio.get_running_loop().call_later(
                    self._settings.deadline, self._end, drawing.worker
                )

    def _end(self, worker: Worker) -> None:
        """End a worker that did not stop drawing when it was told to: a library hangs."""
        _log.error("%s: a worker that has not answered for %g s is ended", self.name, self._settings.deadline)
        self._spawn(worker.close())

    async def _serve(self, worker: Worker) -> None:
        """Draw batch after batch with a worker; the files of one are written while the next is drawn."""
        while True:
            if await self._open(worker):
                pictures = await self._next()
                free = asyncio.Event()
                self._spawn(self._draw(worker, pictures, free))
                await free.wait()

    async def _open(self, worker: Worker) -> bool:
        try:
            await worker.open()
        except KoalaError as error:
            _log.error("%s cannot be drawn: %s", self.name, error)
            self.problem = error
            self._ready.discard(worker)
            return False
        self.problem = None
        self._ready.add(worker)
        return True

    async def _next(self) -> list[Picture]:
        """Wait for the next batch: the first in the queue, and others that can be drawn with it."""
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        shape, batch = self._waiting[0].job.request.shape, self.checker.manifest.profile.batch
        chosen = list(itertools.islice((each for each in self._waiting if each.job.request.shape == shape), batch))
        for picture in chosen:
            self._waiting.remove(picture)
        self._waiting_changed()
        return chosen

    async def _draw(self, worker: Worker, pictures: list[Picture], free: asyncio.Event) -> None:
        number, left = next(self._numbers), dict(enumerate(pictures))
        self._drawing[number] = drawing = _Drawing(worker, pictures)
        self._metrics.running.labels(self.name).inc(len(pictures))
        self._metrics.batch_size.labels(self.name).observe(len(pictures))
        for picture in pictures:
            self._begin(picture)
        try:
            async with aclosing(worker.draw(self._batch(number, pictures))) as events:
                async for event in events:
                    self._handle(event, left)
                    if isinstance(event, Free):
                        free.set()
                        self._seconds += (
                            _SMOOTHING * (event.seconds - self._seconds) if self._seconds else event.seconds
                        )
                    if free.is_set() and all(picture.job.is_over for picture in left.values()):
                        break
        except WorkerDied:
            self._draw_again([*left.values()], worker)
        finally:
            del self._drawing[number]
            if drawing.patience is not None:
                drawing.patience.cancel()
            self._metrics.running.labels(self.name).dec(len(pictures))
            free.set()

    def _begin(self, picture: Picture) -> None:
        picture.attempts += 1
        if picture.job.state is State.QUEUED:
            self._metrics.queue_time.labels(self.name).observe(time.time() - picture.job.created)
        picture.job.begin()

    def _batch(self, number: int, pictures: Sequence[Picture]) -> Batch:
        first = pictures[0].job.request
        steps = first.num_inference_steps or self.checker.manifest.sampling.num_inference_steps
        rows = tuple(make_row(each.job.request, each.index, steps) for each in pictures)
        return Batch(number, rows, first.shared, any(each.job.watched for each in pictures))

    def _handle(self, event: Event, left: dict[int, Picture]) -> None:
        stage = self._metrics.stage.labels
        if isinstance(event, Stepped):
            for row, picture in left.items():
                picture.job.stepped(picture.index, event.index + 1, event.count, event.previews.get(row))
        elif isinstance(event, Free):
            stage(self.name, "draw").observe(event.seconds)
        elif isinstance(event, Finished):
            stage(self.name, "encode").observe(event.seconds)
            picture = left.pop(event.row)
            picture.job.finish(picture.index, event.file, event.recipe, event.parameters)
        else:
            left.pop(event.row).job.fail(event.error)

    def _draw_again(self, pictures: list[Picture], worker: Worker) -> None:
        """Put pictures whose worker died back to the front of the queue: drawn again, they are the same."""
        if worker in self._ready:  # not told yet by another of its batches
            self._ready.discard(worker)
            self._metrics.worker_deaths.labels(self.name).inc()
            _log.warning("%s: a worker ended while it drew", self.name)
        for picture in reversed(pictures):
            if picture.job.is_over:
                continue
            if picture.attempts < _ATTEMPTS:
                self._waiting.appendleft(picture)
            else:
                picture.job.fail(
                    DeviceError(
                        "the picture",
                        expected="a process that draws it",
                        found=f"{picture.attempts} that ended while they did",
                        fix="send it again later; the server's log says more",
                    )
                )
        self._waiting_changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
