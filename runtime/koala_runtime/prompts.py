"""Text to token ids, once per text encoder: the two tokenizers differ in padding and in what "!" means."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from koala_bundle.errors import ArgumentError, BundleError, is_failure
from koala_bundle.files import FileEntry
from koala_bundle.manifest import TOKENIZER_FILE, TOKENIZERS, Manifest
from koala_runtime.weighting import Fragment, parse

MAX_CHARACTERS = 20_000  # far beyond what a model reads; stops a document pasted by mistake
MOST_WRITTEN_OUT = 10 * MAX_CHARACTERS
"""Characters of a prompt in which every learned word is followed by the names of its other vectors."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a text encoder reads of n texts, in chunks of its sequence length.

    ``ids`` int32 and ``weights`` float32 [n, tokens]; ``ends`` int32 [n, chunks]: where in each chunk its text ends.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    ends: NDArray[np.int32]

    def repeated(self, times: int) -> Tokens:
        """Return these with each text ``times`` times in succession."""
        ids, weights, ends = self.ids, self.weights, self.ends
        return Tokens(ids.repeat(times, 0), weights.repeat(times, 0), ends.repeat(times, 0))


class PromptEncoder:
    """The two tokenizers of a bundle, which reads ``chunks`` chunks of 77 tokens (the length is in their files).

    A chunk is 75 tokens between a start and an end, the last one padded; a text that is shorter gets empty chunks.
    """

    def __init__(
        self, folders: tuple[Path, Path], chunks: int = 1, digests: tuple[str | None, ...] = (None, None)
    ) -> None:
        files = zip(folders, digests, strict=True)
        self._tokenizers = tuple(_ChunkTokenizer(folder / TOKENIZER_FILE, chunks, digest) for folder, digest in files)

    def check_sizes(self, tokens: int, vocabularies: tuple[int, int], bundle: Path) -> None:
        """Raise BundleError unless ``tokens`` is what a prompt becomes; ids are to be below ``vocabularies``."""
        for tokenizer, rows in zip(self._tokenizers, vocabularies, strict=True):
            tokenizer.rows = rows
            if tokenizer.tokens != tokens:
                raise BundleError(
                    f"tokenizers of {bundle}",
                    expected=f"{tokens} tokens, as the text encoders read",
                    found=f"{tokenizer.tokens}",
                    fix="export the bundle again with `koala export`",
                )

    def encode(
        self, texts: Sequence[str], texts_2: Sequence[str] | None = None, *, weighted: bool = False
    ) -> tuple[Tokens, Tokens]:
        """Return the tokens of ``texts`` for the first text encoder and of ``texts_2``, or the same, for the second."""
        first, second = self._tokenizers
        tokens = first.encode(texts, weighted), second.encode(texts if texts_2 is None else texts_2, weighted)
        for text, chunks in (tokens[0].cut | tokens[1].cut).items():
            _log.warning(
                "the model reads %d tokens at most; the end of this prompt is ignored: %.60s... "
                "(a bundle made with `koala export --prompt-chunks %d` reads all of it)",
                first.tokens,
                text,
                chunks,
            )
        return tokens[0].tokens, tokens[1].tokens


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Tokens; and the texts of which there were more, with the number of chunks that they take."""

    tokens: Tokens
    cut: dict[str, int]


def open_encoder(bundle: Path, manifest: Manifest, files: Sequence[FileEntry] = ()) -> PromptEncoder:
    """Return the tokenizers of a bundle; what is read must have the digests of ``files``. Raises BundleError."""
    chunks, digests = manifest.profile.prompt_chunks, tuple(entry.sha256 for entry in files) or (None, None)
    encoder = PromptEncoder((bundle / TOKENIZERS[0], bundle / TOKENIZERS[1]), chunks, digests)
    first, second = manifest.spec.text_encoder, manifest.spec.text_encoder_2
    encoder.check_sizes(first.sequence_length * chunks, (first.vocab_size, second.vocab_size), bundle)
    return encoder


class _ChunkTokenizer:
    """One tokenizer; its file says how long a chunk is and what pads it."""

    def __init__(self, path: Path, chunks: int, digest: str | None = None) -> None:
        self._tokenizer = _load(path, digest)
        self._chunks = chunks
        empty = self._tokenizer.encode("").ids
        if len(empty) < 2:
            raise _not_a_tokenizer(path, f"one that makes {len(empty)} tokens of no text")
        self._length, (self._start, self._end), self._pad = len(empty), empty[:2], empty[-1]
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vectors = _vectors(self._tokenizer)
        self.tokens = chunks * self._length
        self.rows: int | None = None
        """Of the text encoder's table; an id beyond it would be read from elsewhere."""

    def encode(self, texts: Sequence[str], weighted: bool) -> _Encoded:
        ids = np.full((len(texts), self._chunks, self._length), self._pad, np.int32)
        ids[:, :, 0], ids[:, :, 1] = self._start, self._end
        weights = np.ones(ids.shape, np.float32)
        ends = np.ones(ids.shape[:2], np.int32)
        cut = {}
        for row, text in enumerate(texts):
            chunks = [*self._split(parse(text) if weighted else [Fragment(text)])]
            for place, chunk in enumerate(chunks[: self._chunks]):
                end = ends[row, place] = len(chunk) + 1
                ids[row, place, 1 : end + 1] = [*(token for token, _ in chunk), self._end]
                weights[row, place, 1:end] = [weight for _, weight in chunk]
            if len(chunks) > self._chunks:
                cut[text] = len(chunks)
        if self.rows is not None and ids.max(initial=0) >= self.rows:
            raise BundleError(
                "a tokenizer of the bundle",
                expected=f"ids below {self.rows}, the text encoder's vocabulary",
                found=str(ids.max()),
                fix="export the bundle again with `koala export`",
            )
        return _Encoded(Tokens(ids.reshape(len(texts), -1), weights.reshape(len(texts), -1), ends), cut)

    def _split(self, fragments: Sequence[Fragment]) -> Iterator[list[tuple[int, float]]]:
        """Yield chunks of (id, weight), at least one."""
        chunk: list[tuple[int, float]] = []
        for fragment in fragments:
            if fragment.text is None:
                yield chunk
                chunk = []
                continue
            for token in self._ids(fragment.text):
                if len(chunk) == self._length - 2:
                    yield chunk
                    chunk = []
                chunk.append((token, fragment.weight))
        yield chunk

    def _ids(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        tokens = {*encoding.tokens} if self._vectors else ()
        found = [word for word in self._vectors if word in tokens]
        for word in found:
            grown = len(text) + text.count(word) * (len(self._vectors[word]) - len(word))
            if grown > MOST_WRITTEN_OUT:
                raise ArgumentError(
                    "prompt",
                    expected=f"at most {MOST_WRITTEN_OUT:,} characters with its learned words written out",
                    found=f"{grown:,}",
                    fix=f"use {word[:80]!r} less often",
                )
            text = text.replace(word, self._vectors[word])
        ids: list[int] = (self._tokenizer.encode(text, add_special_tokens=False) if found else encoding).ids
        return ids


def _vectors(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the text that stands for each learned word of several vectors: "word word_1 word_2", as in diffusers."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    words = {}
    for word in sorted(added, key=len, reverse=True):
        tokens = [word]
        while f"{word}_{len(tokens)}" in added:
            tokens.append(f"{word}_{len(tokens)}")
        if len(tokens) > 1:
            words[word] = " ".join(tokens)
    return words


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


def _load(path: Path, digest: str | None) -> Tokenizer:
    """Parse the very bytes that have ``digest``."""
    data = path.read_bytes()
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise _not_a_tokenizer(path, "other bytes than a moment ago")
    try:
        return Tokenizer.from_buffer(data)
    except BaseException as error:  # tokenizers raises bare Exception, and worse
        if not is_failure(error):
            raise
        raise _not_a_tokenizer(path, str(error)) from None


def _not_a_tokenizer(path: Path, found: str) -> BundleError:
    return BundleError(
        str(path), expected="a tokenizer", found=found, fix="export the bundle again with `koala export`"
    )
