"""Typed reading of a JSON file: a wrong type or a missing key is an error that names the file and the key."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koala_bundle.errors import CheckpointError

SAVE_AGAIN = "correct the file, or save the checkpoint again with diffusers' save_pretrained"
_REQUIRED = object()
_LARGEST = 1e38  # within float32


class Fields:
    """The values of one JSON object, ``file`` as users know it. Without a default, a key has to be there."""

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self.file, self._values = file, values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a value of any type."""
        if key not in self._values and default is _REQUIRED:
            raise self.error(key, "a value", "nothing")
        return self._values.get(key, default)

    def integer(self, key: str, default: Any = _REQUIRED, least: int = 1) -> int:
        """Return a whole number of at least ``least``."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise self.error(key, f"a whole number of at least {least}", shown(value))
        return value

    def number(self, key: str, default: Any = _REQUIRED, bounds: tuple[float, float] | None = None) -> float:
        """Return a finite number, within ``bounds`` if they are given."""
        value = self.raw(key, default)
        least, most = bounds or (-_LARGEST, _LARGEST)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(key, f"a number from {least:g} to {most:g}" if bounds else "a finite number", shown(value))
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """Return true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", shown(value))
        return value

    def integers(self, key: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """Return a list of whole numbers of at least 1."""
        value = self.raw(key, default)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(type(item) is int and item > 0 for item in value)
        ):
            raise self.error(key, "a list of whole numbers", shown(value))
        return tuple(value)

    def one_of(self, key: str, allowed: tuple[str, ...], default: Any = _REQUIRED, fix: str = SAVE_AGAIN) -> str:
        """Return one of the texts ``allowed``."""
        value = self.raw(key, default)
        if value not in allowed:
            raise self.error(key, " or ".join(allowed), shown(value), fix)
        return str(value)

    def require(self, key: str, expected: object, default: Any = None, why: str = "", fix: str = SAVE_AGAIN) -> None:
        """Refuse any other value than ``expected``; a bool and a number are never the same."""
        value = self.raw(key, default)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise self.error(key, f"{expected}{f' ({why})' if why else ''}", shown(value), fix)

    def error(self, key: str, expected: str, found: str, fix: str = SAVE_AGAIN) -> CheckpointError:
        """Return the error of one key."""
        return CheckpointError(f"{self.file}: {key}", expected=expected, found=found, fix=fix)


def shown(value: object) -> str:
    """Return a JSON value as an error shows it."""
    text = value if isinstance(value, str) else str(value)
    return (repr(value) if isinstance(value, str) and (not text or text != text.strip()) else text)[:80]


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Return the JSON object in ``path``; ``missing`` is the advice where there is no such file."""
    if not path.is_file():
        raise CheckpointError(str(path), expected="a file of a diffusers checkpoint", found="no file", fix=missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            str(path), expected="JSON", found=f"an error at {error}", fix="download or copy the file again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(str(path), expected="a JSON object", found=type(data).__name__, fix=missing)
    return data


def misfit(hints: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return (key, expected, found) of the first value that its annotation does not allow; None if all are allowed.

    For files that a library has refused: its annotations say in which key that may lie.
    """
    for key, value in values.items():
        if key in hints and not _allowed(hints[key], value):
            name = hints[key].__name__ if isinstance(hints[key], type) else str(hints[key])
            return key, name.replace("typing.", ""), f"{type(value).__name__} {shown(value)}"
    return None


def _allowed(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_allowed(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple or hint in (tuple, list):
        leaf = next((each for each in arguments if each is not Ellipsis), Any)
        return isinstance(value, list | tuple) and all(_allowed(leaf, item) or _allowed(hint, item) for item in value)
    if hint is type(None) or hint is None:
        return value is None
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    kind = origin or hint
    return not isinstance(kind, type) or (isinstance(value, kind) and (hint is bool or not isinstance(value, bool)))
