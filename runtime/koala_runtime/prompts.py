"""Text to token ids, once per text encoder: the two tokenizers differ in padding and in what "!" means."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from koala_bundle.errors import ArgumentError, BundleError

MAX_CHARACTERS = 20_000  # far beyond what 77 tokens can hold; stops a document pasted by mistake

_log = logging.getLogger(__name__)


class PromptEncoder:
    """The two tokenizers of a bundle; padding and truncation to 77 tokens are part of their files."""

    def __init__(self, folders: tuple[Path, Path]) -> None:
        self._tokenizers = tuple(_load(folder / "tokenizer.json") for folder in folders)

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the token ids for both text encoders, int32 [len(texts), 77] each."""
        both = []
        for tokenizer in self._tokenizers:
            encodings = tokenizer.encode_batch(texts)
            both.append(np.array([encoding.ids for encoding in encodings], np.int32))
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                _log.warning("the model reads 77 tokens at most; the end of this prompt is ignored: %.60s...", text)
        return both[0], both[1]


def check_text(argument: str, text: object) -> str:
    """Return ``text`` if it can be tokenised; raises ArgumentError otherwise."""
    if not isinstance(text, str):
        raise ArgumentError(
            argument, expected="a string", found=type(text).__name__, fix="pass text, or a list of texts"
        )
    if len(text) > MAX_CHARACTERS:
        raise ArgumentError(
            argument,
            expected=f"at most {MAX_CHARACTERS:,} characters",
            found=f"{len(text):,}",
            fix="shorten it: the model reads the first 77 tokens, about 60 words",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            argument,
            expected="text that UTF-8 can hold",
            found=f"a lone surrogate at character {error.start}",
            fix="remove that character",
        ) from None
    return text


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(
            str(path), expected="a tokenizer", found=str(error), fix="export the bundle again with `koala export`"
        ) from None
