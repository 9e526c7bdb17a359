"""Scenes to pixels: each shape is a signed distance, and its edge is one pixel of blend."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from koala_tiny.scenes import BACKGROUNDS, COLOURS, SIZE, Scene

Array = Any  # a float32 array: numpy types the results of its operators too loosely to say more


def draw(scene: Scene, *, size: int = SIZE, left: float = 0, top: float = 0) -> NDArray[np.uint8]:
    """Return the picture, uint8 [size, size, 3]; its corner shows the point (left, top) of the scene."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        reach = thing.radius * 1.2 + 2
        columns = _window(thing.x - left, reach, size)
        rows = _window(thing.y - top, reach, size)
        covered = coverage(
            thing.shape,
            (np.arange(size, dtype=np.float32)[columns] + 0.5 - (thing.x - left))[None, :],
            (np.arange(size, dtype=np.float32)[rows] + 0.5 - (thing.y - top))[:, None],
            thing.radius,
        )[..., None]
        part = picture[rows, columns]
        part += covered * (np.array(COLOURS[thing.colour], np.float32) - part)
    return np.rint(picture).astype(np.uint8)


def coverage(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Return how much of each pixel a shape covers, 0 to 1; ``x`` and ``y`` are pixels from its centre."""
    distance = DISTANCES[shape](x / np.float32(radius), y / np.float32(radius)) * np.float32(radius)
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _window(centre: float, reach: float, size: int) -> slice:
    low, high = int(max(0, centre - reach)), int(min(size, max(0, centre + reach) + 1))
    return slice(min(low, size), high)


def _circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(1)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.9)


def _triangle(x: Array, y: Array) -> Array:
    # Apex (0, -1), base at y = 0.8 from -1 to 1: the slanted sides have normal (1.8, -1).
    return np.maximum((1.8 * np.abs(x) - (y + 1)) / np.float32(sqrt(1.8**2 + 1)), y - np.float32(0.8))


def _diamond(x: Array, y: Array) -> Array:
    return (np.abs(x) + np.abs(y) - np.float32(1.05)) / np.float32(sqrt(2))


def _star(x: Array, y: Array) -> Array:
    # Folded onto the half sector of one point: there the outline is the line from the tip to the inner corner.
    half = pi / 5
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    length = np.sqrt(x * x + y * y)
    along, aside = length * np.cos(angle), length * np.sin(angle)
    tip, inner = 1.1, 0.48
    run, rise = inner * cos(half) - tip, inner * sin(half)
    return (aside * -run + (along - tip) * rise) / np.float32(sqrt(run * run + rise * rise))


def _heart(x: Array, y: Array) -> Array:
    # A square standing on its corner, and a disc on each of its two upper sides.
    side = 0.62
    y = y - np.float32(0.12)
    square = (np.abs(x) + np.abs(y) - np.float32(side * sqrt(2))) / np.float32(sqrt(2))
    middle = np.float32(side / sqrt(2))
    disc = np.sqrt((np.abs(x) - middle) ** 2 + (y + middle) ** 2) - np.float32(side)
    return np.minimum(square, disc)


def _cross(x: Array, y: Array) -> Array:
    arm, half = np.float32(1), np.float32(0.34)
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.75)) - np.float32(0.25)


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
}
"""Signed distance (inside negative) to each shape of half width 1, exact near the outline."""


def soften(picture: NDArray[np.uint8], original_size: int) -> NDArray[np.uint8]:
    """Return the picture as it looks when it was only ``original_size`` pixels wide before."""
    image = Image.fromarray(picture)
    small = image.resize((original_size, original_size), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))
