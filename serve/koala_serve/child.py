"""The process that draws: a pipeline, and a thread that writes the files of one batch while the next is drawn."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from koala_bundle.errors import DeviceError, KoalaError
from koala_serve.drawing import Drawer, warm_up
from koala_serve.encoding import Finish
from koala_serve.worker import Batch, Event

READY = "ready"


@dataclass(frozen=True)
class Opening:
    """How a process opens its pipeline: ``options`` are those of ``Pipeline``."""

    bundle: Path
    options: Mapping[str, Any]
    finish: Finish = field(default_factory=Finish)


def work(connection: Connection, opening: Opening) -> None:
    """Open a pipeline and draw what comes through ``connection`` until it closes."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the server decides when to stop
    from koala_runtime import Pipeline

    inbox = Inbox(connection)
    try:
        pipeline = Pipeline(opening.bundle, **opening.options)
        warm_up(pipeline)
        drawer = Drawer(pipeline, opening.finish)
    except KoalaError as error:
        connection.send(error)
        return
    connection.send(READY)
    with pipeline, closing(drawer):
        while (batch := inbox.next()) is not None:
            try:
                drawer.draw(batch, partial(inbox.answer, batch), partial(inbox.is_cancelled, batch))
            except DeviceError:
                os._exit(1)  # an error of a GPU may stay with the process, so another one draws again


class Inbox:
    """What the server sends: batches, and the numbers of those that are cancelled."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[Batch] = deque()
        self._cancelled: set[int] = set()
        self._sending = threading.Lock()  # files are written in a thread of their own

    def next(self) -> Batch | None:
        """Wait for a batch; None when the server has gone."""
        self._cancelled.clear()  # batches come one at a time
        try:
            while not self._waiting:
                self._receive()
        except EOFError:
            return None
        return self._waiting.popleft()

    def is_cancelled(self, batch: Batch) -> bool:
        """Look without waiting whether a batch is given up."""
        try:
            while self._connection.poll():
                self._receive()
        except (EOFError, OSError):
            os._exit(0)  # nobody is left to draw for
        return batch.number in self._cancelled

    def answer(self, batch: Batch, event: Event) -> None:
        """Send what happened to a batch."""
        try:
            with self._sending:
                self._connection.send((batch.number, event))
        except OSError:
            os._exit(0)

    def _receive(self) -> None:
        message = self._connection.recv()
        if isinstance(message, Batch):
            self._waiting.append(message)
        else:
            self._cancelled.add(message)
