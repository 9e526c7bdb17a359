"""The judge of pictures is judged: it accepts what the generator draws, and refuses what differs in anything."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from koala_tiny.drawing import draw, soften
from koala_tiny.scenes import Request, Scene, Thing, Wanted, random_request, random_scene
from tests.support.judge import judge

Case = tuple[Request, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = Random("judge")
    wanted = [random_request(rng, things=1 + i % 2) for i in range(500)]
    return [(request, draw(random_scene(request, rng, avoid_held_out=False))) for request in wanted]


def accepted(cases: list[Case]) -> float:
    return sum(all(judge(picture, request).values()) for request, picture in cases) / len(cases)


def test_it_accepts_what_was_drawn(cases: list[Case]) -> None:
    assert accepted(cases) >= 0.98


def test_it_refuses_pictures_of_other_prompts(cases: list[Case]) -> None:
    # Two places further: the same number of things, so that their number alone does not give it away.
    others = [cases[(i + 2) % len(cases)][0] for i in range(len(cases))]
    assert accepted([(other, picture) for other, (_, picture) in zip(others, cases, strict=True)]) <= 0.02


SCENE = Scene("white", (Thing("circle", "red", 32, 64, 13), Thing("square", "blue", 96, 64, 27)))
REQUEST = Request((Wanted("circle", "red", "small"), Wanted("square", "blue", "large")), None, "left of", "white")


@pytest.mark.parametrize(
    ("attribute", "changed"),
    [
        ("shape", replace(SCENE, things=(replace(SCENE.things[0], shape="heart"), SCENE.things[1]))),
        ("colour", replace(SCENE, things=(replace(SCENE.things[0], colour="pink"), SCENE.things[1]))),
        ("size", replace(SCENE, things=(replace(SCENE.things[0], radius=20), SCENE.things[1]))),
        ("size", replace(SCENE, things=(SCENE.things[0], replace(SCENE.things[1], radius=20)))),
        ("background", replace(SCENE, background="grey")),
        ("count", replace(SCENE, things=SCENE.things[:1])),
        ("count", replace(SCENE, things=(*SCENE.things, Thing("star", "green", 32, 110, 12)))),
        ("relation", Scene("white", tuple(replace(thing, x=128 - thing.x) for thing in SCENE.things))),
        ("relation", Scene("white", tuple(replace(thing, x=thing.y, y=thing.x) for thing in SCENE.things))),
    ],
)
def test_one_difference_is_enough(attribute: str, changed: Scene) -> None:
    assert all(judge(draw(SCENE), REQUEST).values())
    verdict = judge(draw(changed), REQUEST)
    assert not verdict[attribute]
    if attribute != "count":
        assert [name for name, met in verdict.items() if not met] == [attribute]


def test_place() -> None:
    wanted = Request((Wanted("star", None, None),), place="in the top left corner")
    assert judge(draw(Scene("black", (Thing("star", "cyan", 38, 34, 20),))), wanted)["place"]
    assert not judge(draw(Scene("black", (Thing("star", "cyan", 64, 34, 20),))), wanted)["place"]


def test_exchanged_colours_are_seen() -> None:
    circle, square = SCENE.things
    changed = replace(SCENE, things=(replace(circle, colour="blue"), replace(square, colour="red")))
    assert not judge(draw(changed), REQUEST)["colour"]


def test_a_blurred_picture_is_not_sharp() -> None:
    verdict = judge(soften(draw(SCENE), 24), REQUEST)
    assert not verdict["sharp"]


def test_noise_is_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert not all(judge(noise, REQUEST).values())
    assert not all(judge(np.full((128, 128, 3), 250, np.uint8), REQUEST).values())
