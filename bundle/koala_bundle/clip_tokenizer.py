"""Whether a tokenizer.json is one of CLIP's: then what it does to a text takes a bounded time.

The format allows regular expressions that take exponential time, paddings without end and models of any kind; a bundle
needs none of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from koala_bundle.codec import parse_json
from koala_bundle.errors import BundleError
from koala_bundle.files import read_bytes

MOST_BYTES = 64_000_000
MOST_ADDED_TOKENS = 10_000
MOST_TOKEN_CHARACTERS = 1000
MOST_TOKENS = 1024
"""Of one chunk of text."""
_PARTS = {
    "normalizer": {"Sequence", "NFC", "Replace", "Lowercase"},
    "pre_tokenizer": {"Sequence", "Split", "ByteLevel"},
    "post_processor": {"RobertaProcessing"},
    "decoder": {"ByteLevel"},
    "model": {"BPE"},
}
_KEYS = {"version", "truncation", "padding", "added_tokens", *_PARTS}
# What differs from these is not CLIP's, and some of it ends the library with a panic.
_MODEL = {"dropout": None, "continuing_subword_prefix": "", "byte_fallback": False, "ignore_merges": False}
_SPACES = r"\s+"
# Literal words, then CLIP's own classes: no alternative begins as another does, so nothing is tried twice.
_WORDS = re.compile(
    r"(?:(?:[^\\()\[\]{}*+?.^$|]|\\[^A-Za-z0-9])+\|)*"
    + re.escape(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
)


def check_tokenizer(path: Path, fix: str) -> None:
    """Raise BundleError unless ``path`` is a tokenizer.json of CLIP's kind."""
    try:
        problem = _problem(parse_json(read_bytes(path, MOST_BYTES, fix)))
    except ValueError as error:
        raise BundleError(str(path), expected="a tokenizer", found=f"a damaged one ({error})", fix=fix) from None
    if problem:
        raise BundleError(str(path), expected="a tokenizer of CLIP's kind", found=problem, fix=fix)


def _problem(data: Any) -> str | None:
    """Return in words what CLIP's tokenizers do not have, None if nothing is wrong."""
    if not isinstance(data, dict) or not data.keys() <= _KEYS:
        return "other parts"
    for name, kinds in _PARTS.items():
        seen = set[str]()
        for part in _objects(data.get(name)) if name != "model" else [data.get(name)]:
            kind = part.get("type") if isinstance(part, dict) else None
            if (kind is not None or name == "model") and not (isinstance(kind, str) and kind in kinds):
                return f"a {name} of kind {kind!r:.80}"
            if kind in seen:  # each ByteLevel doubles a text
                return f"a {name} with two of {kind}"
            seen |= {kind} if kind else set()
            if problem := _problem_of_pattern(part):
                return problem
    for key, value in _MODEL.items():
        if data["model"].get(key) not in (None, value):
            return f"a model with {key} {data['model'][key]!r:.80}"
    added = data.get("added_tokens")
    tokens = [*added] if isinstance(added, list) else []
    if len(tokens) > MOST_ADDED_TOKENS:
        return f"{len(tokens):,} added tokens, more than {MOST_ADDED_TOKENS:,}"
    if any(len(str(token.get("content"))) > MOST_TOKEN_CHARACTERS for token in tokens if isinstance(token, dict)):
        return f"an added token of more than {MOST_TOKEN_CHARACTERS:,} characters"
    for length in _lengths(data):
        if not isinstance(length, int) or not 2 <= length <= MOST_TOKENS:
            return f"chunks of {length!r:.80} tokens, not 2 to {MOST_TOKENS}"
    return None


def _problem_of_pattern(part: Any) -> str | None:
    pattern = part.get("pattern") if isinstance(part, dict) else None
    if pattern is None:
        return None
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or len(pattern) > 1:
        return f"the pattern {pattern!r:.80}"
    if regex != _SPACES and not (len(regex) <= 2 * MOST_TOKEN_CHARACTERS and _WORDS.fullmatch(regex)):
        return f"the regular expression {regex[:80]!r}"
    if len(str(part.get("content", ""))) > 1:
        return "a replacement of more than one character"
    return None


def _lengths(data: dict[str, Any]) -> Iterator[Any]:
    """Yield the lengths that texts are cut and padded to; None where that is not fixed."""
    truncation, padding = data.get("truncation"), data.get("padding")
    yield truncation.get("max_length") if isinstance(truncation, dict) else None
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    yield strategy.get("Fixed") if isinstance(strategy, dict) else None
    if isinstance(padding, dict) and (multiple := padding.get("pad_to_multiple_of")) is not None:
        yield multiple


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON value, itself included."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects(item)
