"""Changes to inputs, each decided by a ``random.Random``: what a seed makes, it makes again."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from typing import Any

_SIZES = (b"\xff\xff\xff\xff\x0f", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff")
NAMES = (
    "../secret", "/etc/passwd", "..", ".", "", "a/../../b", "//host/share/x", "C:\\x", "C:x", "\\\\?\\C:\\x", "a\\..",
    "nul", "NUL.onnx", "com1", "a\0b", "a\nb", "a.", "a ", ".hidden", "~/x", "x" * 300, "a//b", "./a", "$HOME/x",
    "file:///etc/passwd", "\x1b[31mred", "ü", "\ud800", "*/_ORT_MEM_ADDR_/*", "[link=x]y[/z]", "{0}", "%s",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 77, 255, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e9, 1e308, -1e308,
    1e-320, math.nan, math.inf, -math.inf,
)  # fmt: skip
OTHERS = (None, True, False, "text", "1", "float16", "float32", "int8", [], [1], {}, {"a": 1}, [[[]]], {"": {"": {}}})


_DEEP = "levels of lists: "
"""A text that becomes nested lists when it is dumped: nothing else here could hold them."""


def any_value(draw: random.Random) -> Any:
    """Return a value of any kind, of which most do not belong."""
    chosen = draw.choice((NAMES, NUMBERS, OTHERS, "deep", "long"))
    if chosen == "deep":
        return f"{_DEEP}{draw.choice((10, 100, 900, 3000, 100_000))}"
    if chosen == "long":
        return draw.choice(("x" * 100_000, [0] * 20_000, {str(number): number for number in range(5000)}))
    return copy.deepcopy(draw.choice(chosen))


_DEEP_TEXT = re.compile(f'"{_DEEP}(\\d+)"'.encode())


def some_place(data: Any, draw: random.Random) -> tuple[Any, ...]:
    """Return a place in a JSON value, found by going down at random: shallow ones are as likely as deep ones."""
    path: list[Any] = []
    while isinstance(data, dict | list) and data and (not path or draw.random() < 0.7):
        key = draw.choice([*data]) if isinstance(data, dict) else draw.randrange(len(data))
        path.append(key)
        data = data[key]
    return tuple(path)


def change_json(data: Any, draw: random.Random) -> Any:
    """Return ``data`` after one to three changes, made in it; its top stays an object in most cases."""
    if draw.random() < 0.01:
        return any_value(draw)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if path := some_place(data, draw):
            _change_at(data, path, draw)
    return data


def _change_at(data: Any, path: tuple[Any, ...], draw: random.Random) -> None:
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    key, kind = path[-1], draw.random()
    old = holder[key]
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, dict):
        holder[draw.choice(NAMES)] = holder.pop(key) if draw.random() < 0.5 else any_value(draw)
    elif kind < 0.3 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder) * draw.choice((1, 100)))
    elif kind < 0.5 and isinstance(old, int | float) and not isinstance(old, bool):
        halved = old / 2 if abs(old) < 1e300 else old  # Python does not divide larger whole numbers
        holder[key] = draw.choice([old + 1, old - 1, old * 2, -old, halved, old * 1000, str(old)])
    elif kind < 0.6:
        holder[key] = copy.deepcopy(_at(data, some_place(data, draw)))
    else:
        holder[key] = any_value(draw)


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def dump(data: Any, draw: random.Random) -> bytes:
    """Return JSON text, now and then with a key twice, a byte order mark or bytes that are changed."""
    text = _DEEP_TEXT.sub(lambda found: b"[" * int(found[1]) + b"]" * int(found[1]), json.dumps(data).encode())
    kind = draw.random()
    if kind < 0.03:
        place = text.find(b'"', draw.randrange(len(text)))
        end = text.find(b",", place)
        if 0 <= place < end:
            text = text[: end + 1] + text[place : end + 1] + text[end + 1 :]
    elif kind < 0.04:
        text = b"\xef\xbb\xbf" + text
    elif kind < 0.08:
        text = change_bytes(text, draw)
    return text


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return bytes of which some are flipped, cut, repeated, or replaced by numbers that sizes are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        place, kind = draw.randrange(len(changed)), draw.random()
        if kind < 0.4:
            changed[place] = draw.randrange(256)
        elif kind < 0.55:
            changed[place : place + 1] = draw.choice(_SIZES)
        elif kind < 0.7:
            del changed[place : place + draw.choice((1, 2, 4, 64))]
        elif kind < 0.8:
            del changed[place:]
        else:
            other = draw.randrange(len(changed))
            changed[place:place] = changed[other : other + draw.choice((1, 8, 64))]
    return bytes(changed)
