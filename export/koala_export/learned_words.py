"""Learned words (textual inversion): vectors that an export adds to the text encoders, each a token of the tokenizers.

A word of several vectors is several tokens, ``word``, ``word_1``, ``word_2``, as diffusers names them; the runtime
reads all of them where a prompt has the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from koala_bundle.errors import ArgumentError
from koala_bundle.files import file_entry
from koala_export.tokenizer import compact_json

MOST_VECTORS = 75
"""Of a word: as many tokens as a text encoder reads of a prompt."""
KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Names of SDXL's text encoders in files with vectors for both; the word is then the file's name."""


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A word for one text encoder; ``vectors`` [count, width]."""

    text: str
    encoder: str
    vectors: Tensor
    file: Path

    @property
    def tokens(self) -> list[str]:
        """The token of each vector."""
        return [self.text, *(f"{self.text}_{place}" for place in range(1, len(self.vectors)))]


def read_words(files: Sequence[Path], widths: dict[str, int]) -> tuple[LearnedWord, ...]:
    """Return the words in safetensors files; ``widths`` are the text encoders' hidden sizes. Raises ArgumentError."""
    words = [word for file in files for word in _read(file, widths)]
    seen: set[tuple[str, str]] = set()
    for word in words:
        for token in word.tokens:
            if (token, word.encoder) in seen:
                raise _refused(
                    word.file, "words that no other file has", repr(token), "rename the file, or leave it out"
                )
            seen.add((token, word.encoder))
    return tuple(words)


def _read(file: Path, widths: dict[str, int]) -> list[LearnedWord]:
    if not file.is_file():
        raise _refused(file, "a safetensors file", "no file", "check the path")
    if file.suffix != ".safetensors":
        found = f"a {file.suffix or 'nameless'} file, which may be a pickle"
        fix = "convert it once with safetensors.torch.save_file, the vectors by their word"
        raise _refused(file, "a safetensors file", found, fix)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _refused(file, "a safetensors file", f"one that cannot be read ({error})", "copy it again") from None
    if tensors.keys() <= KEYS.keys() and tensors:
        return [_word(file, file.stem, KEYS[key], tensor, widths) for key, tensor in sorted(tensors.items())]
    words = []
    for text, tensor in sorted(tensors.items()):
        fitting = [name for name, width in widths.items() if tensor.shape[-1:] == (width,)]
        words.append(_word(file, text, fitting[0] if fitting else "text_encoder", tensor, widths))
    return words


def _word(file: Path, text: str, encoder: str, tensor: Tensor, widths: dict[str, int]) -> LearnedWord:
    vectors = tensor.reshape(1, -1) if tensor.ndim == 1 else tensor
    width = widths[encoder]
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width or not vectors.is_floating_point():
        wide = " or ".join(str(each) for each in widths.values())
        raise _refused(
            file,
            f"vectors of {wide} numbers, the widths of this checkpoint's text encoders",
            f"{text!r} of shape {list(tensor.shape)}",
            "pass an embedding that was trained for this family of models",
        )
    if len(vectors) > MOST_VECTORS:
        raise _refused(file, f"at most {MOST_VECTORS} vectors", f"{len(vectors)} for {text!r}", "train fewer")
    if not torch.isfinite(vectors).all():
        raise _refused(file, "finite vectors", f"NaN or infinity in {text!r}", "train or copy it again")
    return LearnedWord(text, encoder, vectors.float(), file)


def digest_lines(words: Iterable[LearnedWord]) -> list[str]:
    """Return a line for each file that words came from: its name, which may be the word, and its digest."""
    files = {word.file: file_entry(word.file).sha256 for word in words}
    return sorted(f"{file.name} {digest}" for file, digest in files.items())


def add_tokens(tokenizer: bytes, words: Sequence[LearnedWord]) -> bytes:
    """Return a tokenizer.json with the tokens of ``words`` after its own. Raises ArgumentError if it has one."""
    from tokenizers import Tokenizer

    grown = Tokenizer.from_str(tokenizer.decode())
    for word in words:
        for token in word.tokens:
            if grown.token_to_id(token) is not None:
                fix = "give the file, or the word in it, another name such as <name>"
                raise _refused(word.file, "a word that the tokenizer does not have", repr(token), fix)
            grown.add_tokens([token])
    return compact_json(grown)


def count_tokens(tokenizer: bytes) -> int:
    """Return how many ids a tokenizer.json has."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_str(tokenizer.decode()).get_vocab_size())


def add_vectors(text_encoder: Any, words: Sequence[LearnedWord], tokens: int) -> None:
    """Give a text encoder ``tokens`` rows of embeddings, of which the vectors of ``words`` are the last."""
    text_encoder.resize_token_embeddings(tokens, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    vectors = torch.cat([word.vectors for word in words]).to(table.dtype)
    table.data[tokens - len(vectors) : tokens] = vectors


def _refused(file: Path, expected: str, found: str, fix: str) -> ArgumentError:
    return ArgumentError(f"embedding {file}", expected=expected, found=found, fix=fix)
