"""Looks at a picture of koala-tiny and says whether it shows what a prompt asks for. Plain image analysis, no network.

The background is the colour of the border; things are the connected regions that differ from it; a thing's shape is
the one whose outline, drawn with the same area at the same centre, overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from koala_tiny.drawing import coverage
from koala_tiny.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, Request, Wanted

LEAST_AREA = 30  # pixels; what is smaller is a speck
LEAST_OVERLAP = 0.75  # intersection over union with the outline of a shape
NEAREST = 42.0  # half the distance between the two closest colours, Euclidean in sRGB
WIDEST_EDGE = 2.5  # pixels between the colour of a thing and that of the background


@dataclass(frozen=True)
class Seen:
    """A thing that was found; None where it is like nothing that is known."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Sight:
    """Everything that was found."""

    background: str | None
    things: tuple[Seen, ...]
    edge: float


def judge(picture: NDArray[np.uint8], request: Request) -> dict[str, bool]:
    """Return what of ``request`` the picture meets, by attribute; it is right when all of them are."""
    sight = look(picture)
    verdict = {"count": len(sight.things) == len(request.things), "sharp": sight.edge <= WIDEST_EDGE}
    if request.background:
        verdict["background"] = sight.background == request.background
    orders = permutations(sight.things) if verdict["count"] else [()]
    return verdict | max((_compare(order, request) for order in orders), key=lambda v: sum(v.values()))


def look(picture: NDArray[np.uint8]) -> Sight:
    """Find the background and the things in a picture, uint8 [H, W, 3]."""
    pixels = picture.astype(np.float32)
    frame = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    background = np.median(frame, axis=0)
    labels, count = ndimage.label(np.abs(pixels - background).max(-1) > 48)
    things, between, outline = [], np.linalg.norm(pixels - background, axis=-1) > NEAREST, 0
    for label in range(1, count + 1):
        region = labels == label
        if region.sum() < LEAST_AREA:
            continue
        inner = ndimage.binary_erosion(region, iterations=2)
        colour = np.median(pixels[inner if inner.any() else region], axis=0)
        between &= np.linalg.norm(pixels - colour, axis=-1) > NEAREST
        # The outline lies where the blend of both colours is half and half.
        towards = (colour - background) / np.square(colour - background).sum()
        mask = ((pixels - background) @ towards > 0.5) & ndimage.binary_dilation(region, iterations=2)
        outline += int((mask & ~ndimage.binary_erosion(mask)).sum())
        things.append(_describe(mask, _nearest(colour, COLOURS)))
    return Sight(_nearest(background, BACKGROUNDS), tuple(things), int(between.sum()) / max(outline, 1))


def _describe(mask: NDArray[np.bool_], colour: str | None) -> Seen:
    rows, columns = np.nonzero(mask)
    y, x = rows.mean() + 0.5, columns.mean() + 0.5
    fits = {shape: _overlap(mask, shape, x, y) for shape in SHAPES}
    shape = max(fits, key=lambda name: fits[name])
    radius = _radius(shape, mask.sum())
    size = "small" if radius < 19.75 else "large" if radius > 23.75 else "medium"
    across, down = _unit(shape)[1:]
    return Seen(shape if fits[shape] >= LEAST_OVERLAP else None, colour, size, x - across * radius, y - down * radius)


def _overlap(mask: NDArray[np.bool_], shape: str, x: float, y: float) -> float:
    radius = _radius(shape, mask.sum())
    across, down = _unit(shape)[1:]
    rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in mask.shape)
    drawn = (
        coverage(shape, (columns - (x - across * radius))[None], (rows - (y - down * radius))[:, None], radius) > 0.5
    )
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _radius(shape: str, area: float) -> float:
    return float(np.sqrt(area / _unit(shape)[0]))


@cache
def _unit(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) of a shape of half width 1, from a fine drawing of it."""
    points = (np.arange(300, dtype=np.float32) + 0.5) - 150
    drawn = coverage(shape, points[None], points[:, None], 100.0)
    return float(drawn.sum() / 1e4), *(float((drawn.sum(a) * points).sum() / drawn.sum() / 100) for a in (0, 1))


def _nearest(colour: NDArray[Any], names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in names.items()}
    name = min(distances, key=lambda each: distances[each])
    return name if distances[name] < NEAREST else None


def _compare(things: tuple[Seen, ...], request: Request) -> dict[str, bool]:
    pairs = list(zip(request.things, things, strict=False))
    verdict = {}
    for attribute in ("shape", "colour", "size"):
        if any(getattr(wanted, attribute) for wanted in request.things):
            verdict[attribute] = bool(pairs) and all(_met(wanted, seen, attribute) for wanted, seen in pairs)
    if request.place:
        verdict["place"] = bool(pairs) and _cell(things[0]) == PLACES[request.place]
    if request.relation:
        verdict["relation"] = bool(pairs) and _related(things[0], things[1], RELATIONS[request.relation])
    return verdict


def _met(wanted: Wanted, seen: Seen, attribute: str) -> bool:
    value = getattr(wanted, attribute)
    return value is None or value == getattr(seen, attribute)


def _cell(thing: Seen) -> tuple[int, int]:
    """Column and row on the grid of places, whose lines are halfway between the centres 36, 64 and 92."""
    return sum(thing.x > line for line in (50, 78)), sum(thing.y > line for line in (50, 78))


def _related(one: Seen, other: Seen, signs: tuple[int, int]) -> bool:
    across, down = one.x - other.x, one.y - other.y
    along, beside = (across, down) if signs[0] else (down, across)
    return along * sum(signs) > abs(beside)
