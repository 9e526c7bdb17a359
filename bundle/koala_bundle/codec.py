"""Frozen dataclasses to JSON and back, checked field by field.

Covers what the contract's dataclasses use (str, int, float, bool, None, tuple, dict and nested dataclasses) and
nothing else; it is not a general serialiser.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class CodecError(ValueError):
    """JSON that does not have the shape of the dataclass; the message is ``field: expected X, found Y``."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"{field}: expected {expected}, found {found}")


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
        return {str(key): _decode(arguments[1], item, f"{path}.{key}") for key, item in data.items()}
    if hint is Any:
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
    return data


def _describe(data: Any) -> str:
    return f"{type(data).__name__} {data!r}"[:80]
