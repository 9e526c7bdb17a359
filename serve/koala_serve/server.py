"""Runs the application: uvicorn, signals, and logs as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from koala_serve.service import Service

_KEEP_ALIVE_SECONDS = 75
"""nginx's default. After uvicorn's 5 s a connection may close just as a client, told to retry later, uses it again."""


class Server(uvicorn.Server):
    """Stops when its work is done: on the first signal it takes nothing more, on the second it ends at once."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._service: Service = app.state.service
        self._finishing: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app, host=host, port=port, log_config=None, access_log=False, timeout_keep_alive=_KEEP_ALIVE_SECONDS
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self._finishing is not None:
            super().handle_exit(sig, frame)
            return
        self._finishing = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        await self._service.finish()
        self.should_exit = True


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger and message; a message that is an object is merged into it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        message = record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            message = {**message, "traceback": self.formatException(record.exc_info)}
        return json.dumps({**line, **message}, ensure_ascii=False, default=str)


def set_up_logs() -> None:
    """Write what the server and its libraries log to stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
