"""Weights of words, as the AUTOMATIC1111 web UI writes them: ``(word:1.3)``, ``(word)``, ``[word]``.

Brackets nest and their weights multiply; ``(word)`` is 1.1 and ``[word]`` 1 / 1.1. A bracket that is never closed lasts
to the end, one that was never opened is text, and so is what follows a backslash. ``BREAK`` begins a new chunk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from koala_runtime.arrays import Floats

BRACKET = 1.1
"""What ``(word)`` multiplies by and ``[word]`` divides by, in the A1111 web UI."""
_PIECES = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | \s*\b(?P<break>BREAK)\b\s*
    | [^\\()\[\]:B]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Fragment:
    """A run of text with one weight; ``text`` None: a new chunk begins."""

    text: str | None
    weight: float = 1.0


def parse(prompt: str) -> list[Fragment]:
    """Return the fragments of a weighted prompt; neighbours of equal weight are one."""
    texts: list[str | None] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []  # bracket, and the first fragment within it

    def close(bracket: str, factor: float) -> bool:
        """Multiply what the last ``bracket`` holds; False if none is open."""
        for place in reversed(range(len(opened))):
            if opened[place][0] == bracket:
                start = opened.pop(place)[1]
                weights[start:] = [weight * factor for weight in weights[start:]]
                return True
        return False

    for piece in _PIECES.finditer(prompt):
        text: str | None = piece[0]
        if piece["open"]:
            opened.append((piece["open"], len(texts)))
            continue
        if piece["weight"] and close("(", float(piece["weight"])):
            continue
        if piece["close"] and (close("(", BRACKET) if piece["close"] == ")" else close("[", 1 / BRACKET)):
            continue
        if piece["escaped"] is not None:
            text = piece["escaped"]
        elif piece["break"]:
            text = None
        texts.append(text)
        weights.append(1.0)
    for bracket, _ in reversed([*opened]):
        close(bracket, BRACKET if bracket == "(" else 1 / BRACKET)
    return _joined(texts, weights)


def _joined(texts: list[str | None], weights: list[float]) -> list[Fragment]:
    fragments: list[Fragment] = []
    for text, weight in zip(texts, weights, strict=True):
        last = fragments[-1] if fragments else None
        if text is not None and last is not None and last.text is not None and last.weight == weight:
            fragments[-1] = Fragment(last.text + text, weight)
        else:
            fragments.append(Fragment(text, weight))
    return fragments or [Fragment("")]


def weigh(states: Floats, weights: Floats, ends: NDArray[np.int32]) -> Floats:
    """Return hidden states, float32 [n, tokens, width], with each token's distance from the end of its chunk's text
    multiplied by its weight.

    ``weights`` [n, tokens]; ``ends`` [n, chunks]: where in its chunk each text ends. This is what diffusers' community
    pipeline for SDXL does (lpw_stable_diffusion_xl): a token of weight 0 says as much as the end of the text.
    """
    rows, chunks = ends.shape
    by_chunk = states.reshape(rows, chunks, -1, states.shape[-1])
    end = np.take_along_axis(by_chunk, ends[:, :, None, None], axis=2)
    factors = weights.reshape(rows, chunks, -1, 1)
    weighed: Floats = np.where(factors == 1, by_chunk, end + (by_chunk - end) * factors).reshape(states.shape)
    return weighed
