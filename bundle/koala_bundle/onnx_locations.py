"""Which other files an ONNX file names, read before a parser opens them: ONNX Runtime and TensorRT follow any path.

Reads Protocol Buffers as far as it takes (protobuf.dev/programming-guides/encoding) and refuses what parsers may read
differently. Field numbers are those of onnx/onnx.proto3; a tensor's values may lie in another file, its ``location``.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TypeAlias

from koala_bundle.errors import BundleError

Data: TypeAlias = bytes | mmap

MOST_DEPTH = 64
_TENSOR, _ENTRY = "tensor", "entry"
# Per kind of message: the fields that lead to tensors, and what they hold.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_locations(path: Path, listed: set[str], fix: str) -> None:
    """Raise BundleError unless the ONNX file ``path`` names no other files than ``listed``, which lie beside it."""
    if path.suffix.lower() == ".ort":  # by which ONNX Runtime chooses another parser
        raise BundleError(str(path), expected="a file that ends in .onnx", found=path.name, fix=fix)
    try:
        found = external_locations(path)
    except ValueError as error:
        raise BundleError(str(path), expected="an ONNX file", found=f"one that is damaged ({error})", fix=fix) from None
    if others := found - listed:
        raise BundleError(
            str(path), expected="tensors in files with a digest", found=f"some in {min(others)[:200]!r}", fix=fix
        )


def external_locations(path: Path) -> set[str]:
    """Return the files that tensors of an ONNX file are in. Raises ValueError for what is not well-formed."""
    if not path.stat().st_size:
        return set()
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return {*_locations(data, 0, len(data), "model", 0)}


def _locations(data: Data, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > MOST_DEPTH:
        raise ValueError("messages nested too deeply")
    inner = _MESSAGES[message]
    for number, kind, begin, stop in _fields(data, start, end):
        if number not in inner:
            continue
        if kind != _BYTES:
            raise ValueError(f"field {number} of a {message} of another kind")
        if inner[number] == _ENTRY:
            yield from _location(data, begin, stop)
        else:
            yield from _locations(data, begin, stop, inner[number], depth + 1)


def _location(data: Data, start: int, end: int) -> Iterator[str]:
    """Yield the value of an entry whose key is ``location``."""
    texts = {}
    for number, kind, begin, stop in _fields(data, start, end):
        if number in (_KEY, _VALUE):
            if kind != _BYTES or number in texts:
                raise ValueError("an entry of external data that is not a key and a value")
            texts[number] = data[begin:stop]
    if texts.get(_KEY) == b"location":
        yield texts.get(_VALUE, b"").decode("utf-8", "backslashreplace")


def _fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, kind, begin and end of every field of a message."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end, 5)
        number, kind = tag >> 3, tag & 7
        if not number or tag >= 2**32:
            raise ValueError("a field without a number")
        begin = place
        if kind == _BYTES:
            size, begin = _varint(data, place, end, 5)
            place = begin + size
        elif kind == _VARINT:
            _, place = _varint(data, place, end, 10)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if place > end:
            raise ValueError("a field that is cut short")
        yield number, kind, begin, place


def _varint(data: Data, place: int, end: int, longest: int) -> tuple[int, int]:
    """Return a number of at most ``longest`` bytes, and the place after it."""
    value = 0
    for index in range(min(end - place, longest)):
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("a number that is cut short")
