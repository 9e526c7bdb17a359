"""Weights of words: what a prompt is taken apart into, and what is done to hidden states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_runtime.weighting import parse, weigh


def fragments(prompt: str) -> list[tuple[str | None, float]]:
    return [(fragment.text, round(fragment.weight, 6)) for fragment in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("", [("", 1)]),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("(open", [("open", 1.1)]),
        ("[open", [("open", 0.909091)]),
        ("close) it]", [("close) it]", 1)]),
        (r"\(literal\] \\ \x", [("(literal] \\ x", 1)]),
        ("(a:1.5)(b:.5)(c:2)(d:+1)(e:-1)", [("a", 1.5), ("b", 0.5), ("c", 2), ("d", 1), ("e", -1)]),
        ("(a : 1.5 )", [("a ", 1.5)]),
        ("a:1.5) b", [("a:1.5) b", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:1.5]", [("a:1.5", 0.909091)]),
        ("12:30, 4:3", [("12:30, 4:3", 1)]),
        ("(a (b:1.3) c)", [("a ", 1.1), ("b", 1.43), (" c", 1.1)]),
        ("([a])", [("a", 1)]),
        ("((a [b))", [("a ", 1.21), ("b", 1.1)]),
        ("BIG BREAKS Breakfast", [("BIG BREAKS Breakfast", 1)]),
        ("a BREAK b", [("a ", 1), (None, 1), ("b", 1)]),
        ("(a BREAK b:2)", [("a ", 2), (None, 2), ("b", 2)]),
    ],
)
def test_fragments(prompt: str, wanted: list[tuple[str | None, float]]) -> None:
    assert fragments(prompt) == wanted


@given(st.text("ab ()[]\\:1.BREAK", max_size=40))
def test_nothing_fails_and_no_letter_is_lost(prompt: str) -> None:
    found = "".join(fragment.text or "" for fragment in parse(prompt))
    assert [letter for letter in found if letter == "a"] == [letter for letter in prompt if letter == "a"]


def test_a_weight_moves_a_token_from_the_end_of_its_text() -> None:
    states = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    weights = np.ones((2, 8), np.float32)
    weights[0, 1], weights[0, 5], weights[1, 2] = 2, 0, 0.5
    ends = np.array([[2, 3], [3, 1]], np.int32)  # chunks of 4
    weighed = weigh(states, weights, ends)
    assert np.allclose(weighed[0, 1], states[0, 2] + 2 * (states[0, 1] - states[0, 2]))
    assert np.allclose(weighed[0, 5], states[0, 7])
    assert np.allclose(weighed[1, 2], (states[1, 2] + states[1, 3]) / 2)
    changed = np.abs(weighed - states).max(-1) > 0
    assert np.argwhere(changed).tolist() == [[0, 1], [0, 5], [1, 2]]
