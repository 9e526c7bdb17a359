"""Errors as clients of each protocol read them; none of them is ever a traceback."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from koala_bundle.errors import ArgumentError, InputError, KoalaError, WithheldError
from koala_serve.errors import FaultError, ServeError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_A1111 = "/sdapi/"
_log = logging.getLogger(__name__)


def status_of(error: KoalaError) -> int:
    """Return the HTTP status of an error: of a pipeline's, 400 for what the client can mend, 503 for what it cannot."""
    if isinstance(error, ServeError):
        return error.status
    return 400 if isinstance(error, InputError | WithheldError) else 503


def error_body(error: KoalaError) -> dict[str, Any]:
    """Return an error as OpenAI's API writes it; ``code`` is its class, as in ``queue_full``."""
    status, name = status_of(error), type(error).__name__.removesuffix("Error")
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "param": error.what if status == 400 else None,
            "code": "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_"),
        }
    }


def error_response(error: KoalaError, path: str) -> JSONResponse:
    """Return an error in the form of the protocol that ``path`` belongs to."""
    status, headers = status_of(error), {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_after := getattr(error, "retry_after", None):
        headers["Retry-After"] = str(retry_after)
    body = error_body(error)
    if path.startswith(_A1111):
        body = {"error": type(error).__name__, "detail": str(error), "body": "", "errors": str(error)}
    return JSONResponse(body, status, headers)


def add_handlers(app: FastAPI) -> None:
    """Let ``app`` answer every error in the client's protocol."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, KoalaError)
        return error_response(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(_from_pydantic(error), request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = {"message": str(error.detail), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, error.status_code, error.headers)

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        _log.error("a request to %s failed", request.url.path, exc_info=error)
        fault = FaultError("the server", expected="an answer", found="a fault of its own", fix="its log says more")
        return error_response(fault, request.url.path)

    app.add_exception_handler(KoalaError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)


def _from_pydantic(error: RequestValidationError) -> ArgumentError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    given = repr(first.get("input"))[:80]
    expected, found = {
        "extra_forbidden": ("a field that this server knows", "an unknown one"),
        "json_invalid": ("JSON", f"text that ends in error ({first.get('ctx', {}).get('error', '')})"),
        "missing": ("a value", "none"),
    }.get(first["type"], (str(first["msg"]).removeprefix("Input should be "), given))
    name = "body" if first["type"] == "json_invalid" else name
    return ArgumentError(name, expected=expected, found=found, fix="see docs/serve.md, which lists every field")
