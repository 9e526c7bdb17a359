"""The page at ``/``: three files, no build step."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parents[1] / "page"
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


@router.get("/")
async def page() -> Response:
    """Return the page itself."""
    return FileResponse(_FOLDER / "page.html", media_type="text/html", headers=_HEADERS)


@router.get("/page.css")
async def style() -> Response:
    """Return how it looks."""
    return FileResponse(_FOLDER / "page.css", media_type="text/css", headers=_HEADERS)


@router.get("/page.js")
async def script() -> Response:
    """Return what it does."""
    return FileResponse(_FOLDER / "page.js", media_type="text/javascript", headers=_HEADERS)
