"""Pictures as files."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koala_runtime import Recipe


def encode(image: Any, recipe: Recipe, format: str, compression: int | None) -> bytes:
    """Return a picture as a PNG, JPEG or WebP file; a PNG carries its recipe."""
    from koala_runtime import to_png

    if format == "png":
        return to_png(image, recipe)
    stream = BytesIO()
    image.save(stream, format.upper(), quality=90 if compression is None else compression)
    return stream.getvalue()
