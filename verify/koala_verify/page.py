"""A verification as one self-contained HTML file: tables, pictures, difference maps."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from koala_verify.comparison import Verification
from koala_verify.pixels import Pixels

WHITE_LEVEL = 16
"""The difference, of 255 levels, from which on a difference map is white."""


def page(verification: Verification) -> str:
    """Return the page as HTML."""
    shown = [
        {
            "figures": figures,
            "images": [_data_url(image) for image in (reference, picture, difference_map(reference, picture))],
        }
        for figures, (reference, picture) in zip(verification.pictures, verification.pairs, strict=True)
    ]
    environment = Environment(loader=PackageLoader("koala_verify", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(verification=verification, shown=shown, white_level=WHITE_LEVEL)


def difference_map(reference: Pixels, picture: Pixels) -> Pixels:
    """Return the largest difference of each pixel's channels, uint8 [H, W]; WHITE_LEVEL levels or more are white."""
    difference = np.abs(reference.astype(int) - picture.astype(int)).max(-1)
    shown: Pixels = (np.minimum(difference, WHITE_LEVEL) * 255 // WHITE_LEVEL).astype(np.uint8)
    return shown


def _data_url(image: Pixels) -> str:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
