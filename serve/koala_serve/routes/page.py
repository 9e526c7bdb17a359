"""The page at ``/``: a few files, no build step."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/recipe.js": ("recipe.js", "text/javascript"),
}
"""The page's files and their media types by path. They hold no secret, and need no key."""
_FOLDER = Path(__file__).parents[1] / "page"
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
router = APIRouter(include_in_schema=False)


async def page(request: Request) -> Response:
    """Return a file of the page."""
    name, media_type = FILES[request.scope["route"].path]
    return FileResponse(_FOLDER / name, media_type=media_type, headers=_HEADERS)


for _path in FILES:
    router.add_api_route(_path, page)
