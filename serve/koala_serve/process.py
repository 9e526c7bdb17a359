"""A worker that is a process of this machine, which another takes the place of when it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from koala_bundle.errors import DeviceError, KoalaError
from koala_serve.child import READY, Opening, work
from koala_serve.worker import Batch, Event, Finished, Refused, WorkerDied

_spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
_SLOWEST_RESTART = 30.0  # seconds


class ProcessWorker:
    """Draws in a process of its own: an error of a GPU or a library ends that process, and the server goes on."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._process: Any = None
        self._connection: Connection | None = None
        self._events: dict[int, asyncio.Queue[Event | None]] = {}  # by batch; None: the process has ended
        self._failures = 0
        self._sending = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process that draws, None while there is none."""
        return None if self._process is None else self._process.pid

    async def open(self) -> None:
        """Start the process if there is none, later after every failure, and wait until its pipeline is open."""
        if self._process is not None and self._process.is_alive() and self._connection is not None:
            return
        if self._failures:
            await asyncio.sleep(min(2.0 ** (self._failures - 1), _SLOWEST_RESTART) - 1)
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=work, args=(theirs, self._opening), daemon=True)
        await asyncio.to_thread(process.start)
        theirs.close()
        self._process = process
        try:
            answer = await asyncio.to_thread(ours.recv)
        except EOFError:
            answer = DeviceError(
                str(self._opening.bundle),
                expected="a process that opens it",
                found="one that ended",
                fix="see the log; `koala doctor` looks at this machine",
            )
        if answer != READY:
            self._failures += 1
            ours.close()
            await asyncio.to_thread(process.join)
            assert isinstance(answer, KoalaError)
            raise answer
        self._connection = ours
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(ours, loop), daemon=True, name="worker events").start()

    def _listen(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Pass on what the process sends, until it ends."""
        with suppress(RuntimeError):  # the loop is closed
            try:
                while True:
                    loop.call_soon_threadsafe(self._deliver, *connection.recv())
            except (EOFError, OSError):
                loop.call_soon_threadsafe(self._ended, connection)

    def _deliver(self, number: int, event: Event) -> None:
        if number in self._events:
            self._events[number].put_nowait(event)

    def _ended(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._failures += 1
            connection.close()
            for queue in self._events.values():
                queue.put_nowait(None)

    async def draw(self, batch: Batch) -> AsyncGenerator[Event]:
        """Yield what happens until every row is finished or refused. Raises WorkerDied."""
        self._events[batch.number] = events = asyncio.Queue[Event | None]()
        left = set(range(len(batch.rows)))
        try:
            await asyncio.to_thread(self._send, batch)
            while left:
                event = await events.get()
                if event is None:
                    raise WorkerDied
                if isinstance(event, Finished | Refused):
                    left.discard(event.row)
                yield event
            self._failures = 0
        finally:
            del self._events[batch.number]

    def cancel(self, number: int) -> None:
        """Give a batch up after the step that is being drawn."""
        with suppress(WorkerDied):
            self._send(number)

    def _send(self, message: Batch | int) -> None:
        with self._sending:
            if self._connection is None:
                raise WorkerDied
            try:
                self._connection.send(message)
            except OSError:
                raise WorkerDied from None

    async def close(self) -> None:
        """End the process at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join)
