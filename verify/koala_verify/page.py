"""What ``koala verify`` found, as one HTML file that needs nothing else: tables, pictures, difference maps."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from koala_verify.pixels import Pixels
from koala_verify.verify import Findings

MOST = 16  # a difference of so many levels, or more, is white in a difference map


def page(findings: Findings) -> str:
    """Return the page."""
    shown = [
        {
            "told": told,
            "images": [_data_url(image) for image in (reference, ours, difference_map(reference, ours))],
        }
        for told, (reference, ours) in zip(findings.pictures, findings.pairs, strict=True)
    ]
    environment = Environment(loader=PackageLoader("koala_verify", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(findings=findings, shown=shown, most=MOST)


def difference_map(reference: Pixels, ours: Pixels) -> Pixels:
    """Return the largest difference of each pixel's channels, 0 to MOST levels as black to white, uint8 [H, W]."""
    difference = np.abs(reference.astype(int) - ours.astype(int)).max(-1)
    shown: Pixels = (np.minimum(difference, MOST) * 255 // MOST).astype(np.uint8)
    return shown


def _data_url(image: Pixels) -> str:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
