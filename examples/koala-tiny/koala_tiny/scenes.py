"""What a picture shows, what a prompt asks for, and the words for both.

A ``Request`` is what a prompt says, with None for what it leaves open; a ``Scene`` is one picture that meets a
request, down to the pixel. Both are drawn at random from a ``random.Random``, so a seed gives the same ones again.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SIZE = 128
"""Height and width of a picture, pixels."""

COLOURS = {
    "red": (222, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (252, 222, 40),
    "green": (44, 160, 60),
    "cyan": (70, 205, 225),
    "blue": (36, 72, 205),
    "purple": (132, 50, 170),
    "pink": (250, 140, 190),
}
"""Colours of things, sRGB."""

BACKGROUNDS = {"white": (250, 250, 250), "grey": (150, 150, 150), "black": (18, 18, 18), "brown": (96, 62, 36)}
"""Colours of backgrounds, sRGB."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")

RADII = {"small": (15.5, 19.0), "medium": (20.5, 22.5), "large": (25.0, 29.0)}
"""Half the width of a thing, pixels, lowest and highest. Nobody says "medium": it is one of what is left open."""

PLACES = {
    "in the top left corner": (0, 0),
    "at the top": (1, 0),
    "in the top right corner": (2, 0),
    "on the left": (0, 1),
    "in the centre": (1, 1),
    "on the right": (2, 1),
    "in the bottom left corner": (0, 2),
    "at the bottom": (1, 2),
    "in the bottom right corner": (2, 2),
}
"""Column and row of a place on a grid of three by three."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing is, seen from the second: signs of x and y."""

OTHER_WORDS = {
    "in the centre": ("in the centre", "in the center", "in the middle"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPENINGS = ("a picture of ", "a drawing of ", "an image of ")

_CELL = (36.0, 64.0, 92.0)  # centres of the columns and rows of PLACES, pixels
_PAIR = (32.0, 96.0)  # centres of two things along the axis of their relation, pixels


@dataclass(frozen=True)
class Wanted:
    """One thing as a prompt describes it."""

    shape: str | None
    colour: str | None
    size: str | None


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: one thing, perhaps at a place, or two, perhaps with a relation."""

    things: tuple[Wanted, ...]
    place: str | None = None
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Thing:
    """One thing in a picture: centre and half width in pixels, x to the right and y down."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything in one picture."""

    background: str
    things: tuple[Thing, ...]


def held_out(shape: str, colour: str, background: str) -> bool:
    """Tell whether no training picture shows this: a quarter of all combinations, evenly over any two of the three."""
    places = SHAPES.index(shape), list(COLOURS).index(colour), list(BACKGROUNDS).index(background)
    return sum(places) % len(BACKGROUNDS) == 0


def random_request(rng: Random, *, things: int, complete: bool = False) -> Request:
    """Return a request for one thing or two; ``complete`` leaves neither shape, colour nor background open."""

    def open_to(likelihood: float, choice: str) -> str | None:
        return None if rng.random() < likelihood else choice

    wanted = tuple(
        Wanted(
            shape=open_to(0.0 if complete else 0.03, rng.choice(SHAPES)),
            colour=open_to(0.0 if complete else 0.06, rng.choice(list(COLOURS))),
            size=open_to(0.4, rng.choice(("small", "large"))),
        )
        for _ in range(things)
    )
    return Request(
        things=wanted,
        place=open_to(0.4, rng.choice(list(PLACES))) if things == 1 else None,
        relation=open_to(0.0 if complete else 0.1, rng.choice(list(RELATIONS))) if things == 2 else None,
        background=open_to(0.0 if complete else 0.15, rng.choice(list(BACKGROUNDS))),
    )


def random_scene(request: Request, rng: Random, *, avoid_held_out: bool) -> Scene:
    """Return a scene that meets ``request``, open choices at random.

    ``avoid_held_out`` gives a thing that is held out another colour, whatever the request says; only training does.
    """
    background = request.background or rng.choice(list(BACKGROUNDS))
    sizes = [rng.choice(list(RADII)) if wanted.size is None else wanted.size for wanted in request.things]
    radii = [rng.uniform(*RADII[size]) for size in sizes]
    things = []
    for wanted, (x, y), radius in zip(request.things, _centres(request, radii, rng), radii, strict=True):
        shape = wanted.shape or rng.choice(SHAPES)
        colour = wanted.colour or rng.choice(list(COLOURS))
        while avoid_held_out and held_out(shape, colour, background):
            colour = rng.choice(list(COLOURS))
        things.append(Thing(shape, colour, x, y, radius))
    return Scene(background, tuple(things))


def training_pair(rng: Random) -> tuple[Request, Scene]:
    """Return a request and a scene that meets it, neither with a combination that is held out."""
    request = random_request(rng, things=1 if rng.random() < 0.6 else 2)
    scene = random_scene(request, rng, avoid_held_out=True)
    things = tuple(
        Wanted(wanted.shape, wanted.colour and thing.colour, wanted.size)
        for wanted, thing in zip(request.things, scene.things, strict=True)
    )
    return Request(things, request.place, request.relation, request.background), scene


def held_out_requests(rng: Random, count: int, *, things: int) -> list[Request]:
    """Return complete requests, in each of them a thing that is held out."""
    found: list[Request] = []
    while len(found) < count:
        request = random_request(rng, things=things, complete=True)
        background = str(request.background)
        if any(held_out(str(wanted.shape), str(wanted.colour), background) for wanted in request.things):
            found.append(request)
    return found


def words(request: Request, rng: Random | None = None) -> str:
    """Return a prompt for the request; with ``rng`` one of many wordings, else the plain one."""

    def one_of(name: str) -> str:
        return name if rng is None else rng.choice(OTHER_WORDS.get(name, (name,)))

    def chance(likelihood: float) -> bool:
        return rng is not None and rng.random() < likelihood

    terse = chance(0.15)

    def phrase(wanted: Wanted) -> str:
        text = " ".join(word for word in (wanted.size, wanted.colour, wanted.shape or "shape") if word)
        article = "an" if text[0] in "aeiou" else "a"
        return text if terse else f"{article} {text}"

    if len(request.things) == 2:
        link = one_of(request.relation) if request.relation else "and"
        text = f"{phrase(request.things[0])} {link} {phrase(request.things[1])}"
    else:
        text = phrase(request.things[0]) + (f" {one_of(request.place)}" if request.place else "")
    if request.background:
        text += f", {request.background} background" if terse else f" on a {request.background} background"
    return (rng.choice(OPENINGS) if rng and chance(0.1) else "") + text


def _centres(request: Request, radii: list[float], rng: Random) -> list[tuple[float, float]]:
    if len(request.things) == 1:
        if request.place is None:
            free = radii[0] + 3
            return [(rng.uniform(free, SIZE - free), rng.uniform(free, SIZE - free))]
        column, row = PLACES[request.place]
        return [(_CELL[column] + rng.uniform(-4, 4), _CELL[row] + rng.uniform(-4, 4))]
    across, down = RELATIONS[request.relation or rng.choice(list(RELATIONS))]
    centres = []
    for side in (1, -1):
        along = _PAIR[0 if side * (across + down) < 0 else 1] + rng.uniform(-1.5, 1.5)
        beside = SIZE / 2 + rng.uniform(-8, 8)
        centres.append((along, beside) if across else (beside, along))
    return centres
