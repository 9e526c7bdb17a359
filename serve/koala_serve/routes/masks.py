"""Masks as OpenAI's clients send them: transparent where to paint."""

from __future__ import annotations

from io import BytesIO

from PIL import ImageChops

from koala_serve.drawing import open_image


def white_where_transparent(file: bytes) -> bytes:
    """Return a mask that is white where to paint; one without transparency is that already."""
    image = open_image(file)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return file
    stream = BytesIO()
    ImageChops.invert(image.convert("RGBA").getchannel("A")).save(stream, "PNG")
    return stream.getvalue()


def inverted(file: bytes) -> bytes:
    """Return a mask that is white where the other was black."""
    stream = BytesIO()
    ImageChops.invert(open_image(file).convert("L")).save(stream, "PNG")
    return stream.getvalue()
