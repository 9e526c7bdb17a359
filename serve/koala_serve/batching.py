"""Requests as rows of batches."""

from __future__ import annotations

from koala_serve.image_request import ImageRequest
from koala_serve.worker import Row


def make_row(request: ImageRequest, index: int, steps: int = 0) -> Row:
    """Return picture ``index`` of a request as a row of a batch."""
    return Row(
        request.prompt,
        request.negative_prompt,
        request.seed_of(index),
        request.image,
        request.mask,
        request.format,
        request.compression,
        preview_steps(steps, request.previews),
    )


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """Return after which steps, from 0, so many previews are shown: evenly spread, without the finished picture."""
    return frozenset(max(0, round(steps * (each + 1) / (previews + 1)) - 1) for each in range(previews))
