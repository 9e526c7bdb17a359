"""A file of prompts: a JSON object per line (``.jsonl``), or a prompt per line (``.txt``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

from koala_bundle.errors import ArgumentError
from koala_serve.image_request import MAX_SEED, ImageRequest

_TYPES: dict[str, tuple[type, str]] = {
    "prompt": (str, "text"),
    "negative_prompt": (str, "text"),
    "seed": (int, "a whole number"),
    "num_inference_steps": (int, "a whole number"),
    "guidance_scale": (Real, "a number"),
    "scheduler": (str, "a sampler's name"),
    "eta": (Real, "a number"),
    "weighted": (bool, "true or false"),
    "strength": (Real, "a number"),
    "image": (str, "a file's path"),
    "mask_image": (str, "a file's path"),
    "id": (str, "text"),
}
_SAFE = re.compile(r"[\w-][\w.-]{0,99}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices under Windows


@dataclass(frozen=True)
class PromptRow:
    """Line ``index``, from 0: a request for one picture, whose file is called ``name``."""

    index: int
    name: str
    request: ImageRequest

    @property
    def file(self) -> str:
        """The picture's file."""
        return f"{self.name}.png"


def read_prompts(path: Path, seed: int = 0) -> Iterator[PromptRow]:
    """Yield the rows of a file, one by one; blank lines count, and are no rows.

    A row without a seed gets ``seed`` plus its index, modulo 2^32. Paths are relative to the file's folder. Raises
    ArgumentError for a line that is no row, with its number.
    """
    names: dict[str, int] = {}
    with _opened(path) as stream:
        for index, raw in enumerate(stream):
            line = _text(f"{path}: line {index + 1}", raw)
            if not line.strip():
                continue
            where = f"{path}: line {index + 1}"
            given = _parsed(where, line) if path.suffix.lower() != ".txt" else {"prompt": line.strip()}
            row = _row(where, index, given, path.absolute().parent, seed)
            key = row.name.lower()  # some file systems do not tell cases apart
            if key in names:
                raise ArgumentError(
                    f"{where}: id",
                    expected="one that no other line has",
                    found=f"{row.name!r}, as in line {names[key]}",
                    fix="give each line an id of its own, or none",
                )
            names[key] = index + 1
            yield row


def _text(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArgumentError(
            where, expected="text in UTF-8", found="other bytes", fix="save the file as UTF-8"
        ) from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ArgumentError(
            str(path), expected="a file of prompts", found=str(error.strerror), fix="pass a .jsonl or .txt file"
        ) from None


def _parsed(where: str, line: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(
            where, expected="a JSON object", found=f"text that ends in error ({error})", fix="write one object per line"
        ) from None
    if not isinstance(given, dict):
        raise ArgumentError(
            where, expected='a JSON object such as {"prompt": "a koala"}', found=f"{given!r:.60}", fix="write an object"
        )
    return given


def _row(where: str, index: int, given: dict[str, Any], folder: Path, seed: int) -> PromptRow:
    for name, value in given.items():
        if name not in _TYPES:
            raise ArgumentError(
                f"{where}: {name}", expected=f"one of {', '.join(_TYPES)}", found="an unknown key", fix="leave it out"
            )
        kind, expected = _TYPES[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ArgumentError(f"{where}: {name}", expected=expected, found=f"{value!r:.60}", fix="write that")
    if "prompt" not in given:
        raise ArgumentError(f"{where}: prompt", expected="what to draw", found="none", fix="add it")
    name = given.pop("id", f"{index:06d}")
    if not _SAFE.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
        raise ArgumentError(
            f"{where}: id",
            expected="letters, digits, - and _, which become the name of a file",
            found=f"{name!r:.60}",
            fix="write a simpler one",
        )
    files = {key: _file(f"{where}: {key}", folder / given.pop(key)) for key in ("image", "mask_image") if key in given}
    chosen = {"seed": (seed + index) % MAX_SEED} | given
    request = ImageRequest(model="", **chosen, image=files.get("image"), mask=files.get("mask_image"))
    return PromptRow(index, name, request)


def _file(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArgumentError(where, expected="a picture", found=f"{path}: {error.strerror}", fix="name a file") from None
