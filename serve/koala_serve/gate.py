"""What every request passes: who may come in, and what is written down of it."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala_serve.errors import OriginError, ServeError, TooLargeError, UnauthorizedError
from koala_serve.replies import error_response
from koala_serve.routes.page import FILES
from koala_serve.settings import Settings

OPEN = (*FILES, "/healthz", "/readyz", "/metrics")
"""Paths that need no key: the page, which asks for it, and what machines ask."""
_log = logging.getLogger("koala_serve.requests")


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or refuse it, and log how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path, started = Headers(scope=scope), scope["path"], time.monotonic()
        number = uuid.uuid4().hex
        note: dict[str, object] = {"request_id": number}
        scope.setdefault("state", {})["note"] = note

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                note["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        refusal = self._refusal(headers, path)
        try:
            await (refusal or self._app)(scope, receive, answer)
        finally:
            seconds = round(time.monotonic() - started, 4)
            _log.info({"method": scope["method"], "path": path, "seconds": seconds, **note})

    def _refusal(self, headers: Headers, path: str) -> Response | None:
        origin = headers.get("origin")
        if origin and origin not in self._settings.origins and urlsplit(origin).netloc != headers.get("host"):
            error: ServeError = OriginError(
                "Origin", expected="the server's own page", found=origin, fix=f"start the server with --origin {origin}"
            )
            return error_response(error, path)
        key = self._settings.api_key
        if key is None or path in OPEN or _has_key(headers.get("authorization", ""), key):
            return self._too_large(headers, path)
        return error_response(
            UnauthorizedError(
                "Authorization",
                expected="the server's API key",
                found="none, or another",
                fix="send `Authorization: Bearer KEY`",
            ),
            path,
        )

    def _too_large(self, headers: Headers, path: str) -> Response | None:
        """Refuse what says that it is too large: Starlette, which stops the rest, would answer in plain text."""
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length[:20]) <= self._settings.body:
            return None
        return error_response(
            TooLargeError(
                "the request", expected=f"{self._settings.body:,} bytes at most", found="more", fix="send less"
            ),
            path,
        )


def _has_key(given: str, key: str) -> bool:
    """Whether a header has the key: as a bearer token, or as the password of basic authentication."""
    kind, _, value = given.partition(" ")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), key.encode())
