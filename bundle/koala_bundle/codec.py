"""Frozen dataclasses to JSON and back, checked field by field; and JSON that has one meaning only.

Covers what the contract's dataclasses use (str, int, float, bool, None, tuple, dict and nested dataclasses) and
nothing else; it is not a general serialiser.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST = 120  # characters of a field's path in an error
_INTEGERS = range(-(2**63), 2**64 + 1)  # those of seeds; sizes and counts are smaller
_DEEPEST = 8  # levels of a value of any type; a scheduler's keys hold lists of numbers


class CodecError(ValueError):
    """JSON that does not have the shape of the dataclass; the message is ``field: expected X, found Y``."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        self.field, self.expected, self.found = field[:_LONGEST], expected, found
        super().__init__(f"{self.field}: expected {expected}, found {found}")


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError (also for what is nested too deeply) and for what parsers read differently: a key that an object
    has twice, NaN and infinity.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:_LONGEST]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the number {name}")


def to_json(value: Any) -> Any:
    """Return ``value`` as dicts, lists and scalars that ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build the dataclass ``cls`` from ``data``. Raises CodecError naming the first field that does not fit."""
    if not isinstance(data, Mapping):
        raise CodecError(where or "top level", "an object", _describe(data))
    hints = _hints(cls)  # type: ignore[arg-type]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = f"{where}.{field.name}" if where else field.name
        if field.name not in data:
            raise CodecError(path, "a value", "nothing")
        fields[field.name] = _decode(hints[field.name], data[field.name], path)
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise CodecError(f"{where}.{unknown[0]}" if where else unknown[0], "no such field", "a value")
    return cls(**fields)


@cache  # evaluating them takes most of the time of reading a manifest
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, data: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), data, path)
    if origin is tuple:
        if not isinstance(data, list):
            raise CodecError(path, "a list", _describe(data))
        return tuple(_decode(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise CodecError(path, "an object", _describe(data))
        for key in data:
            _check_scalar(key, path)
        return {str(key): _decode(arguments[1], item, f"{path}.{key}") for key, item in data.items()}
    if hint is Any:
        _check_plain(data, path)
        return data
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), data, path)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise CodecError(path, "float", _describe(data)) from None
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise CodecError(path, hint.__name__, _describe(data))
    _check_scalar(data, path)
    return data


def _check_plain(data: Any, path: str, depth: int = 0) -> None:
    """Raise CodecError for a value of any type that is nested deeply or has a scalar that is out of bounds."""
    if depth > _DEEPEST:
        raise CodecError(path, f"at most {_DEEPEST} levels", "more")
    if isinstance(data, Mapping):
        for key, item in data.items():
            _check_scalar(key, path)
            _check_plain(item, f"{path}.{key}", depth + 1)
    elif isinstance(data, list):
        for index, item in enumerate(data):
            _check_plain(item, f"{path}[{index}]", depth + 1)
    else:
        _check_scalar(data, path)


def _check_scalar(data: Any, path: str) -> None:
    if isinstance(data, str) and not data.isascii():
        try:
            data.encode()
        except UnicodeEncodeError:
            raise CodecError(path, "text that UTF-8 can hold", "a lone surrogate") from None
    elif isinstance(data, float) and not math.isfinite(data):
        raise CodecError(path, "a finite number", str(data))
    elif isinstance(data, int) and data not in _INTEGERS:
        raise CodecError(path, "a whole number of 64 bits", "a larger one")


def _describe(data: Any) -> str:
    return f"{type(data).__name__} {data!r}"[:80]
