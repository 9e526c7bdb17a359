"""How a picture becomes a file: the recipe in a PNG, and in each format what marks it as made by a model."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

from PIL import Image, PngImagePlugin

from koala_bundle.codec import to_json
from koala_runtime.marking.mark import Mark, metadata_options, sign
from koala_runtime.recipe import A1111_KEY, KEY, Recipe


def encode_picture(
    image: Image.Image, recipe: Recipe, format: str = "PNG", mark: Mark | None = None, **options: Any
) -> bytes:
    """Return ``image`` as a file in one of Pillow's formats; a PNG carries its recipe.

    The file of a picture that was drawn with ``mark=True``, which its recipe says, carries XMP in PNG, JPEG and WEBP,
    and so does any with a ``mark``, which also signs it if it has a certificate. Pixels are taken as they are.
    ``options`` are Pillow's, such as ``quality``. Without a certificate the same arguments give the same bytes. Raises
    ArgumentError for marks in another format.
    """
    format = format.upper()
    text = None
    if format == "PNG":
        text = options["pnginfo"] = PngImagePlugin.PngInfo()
        text.add_itxt(A1111_KEY, recipe.parameters)
        text.add_itxt(KEY, json.dumps(to_json(recipe), ensure_ascii=False, sort_keys=True))
    if recipe.mark or mark is not None:
        options |= metadata_options(format, text)
    stream = BytesIO()
    image.save(stream, format, **options)
    return sign(stream.getvalue(), format, mark)


def to_png(image: Image.Image, recipe: Recipe) -> bytes:
    """Return ``image`` as a PNG file that carries its recipe; the same picture and recipe give the same bytes."""
    return encode_picture(image, recipe)
