"""CLIP tokenizers as one file each: ``tokenizer.json`` with padding and truncation inside.

The runtime then needs the ``tokenizers`` package alone, and what a pad or a literal "!" means travels with the file
(in SDXL's second tokenizer "!" is the padding token, id 0, wherever it stands).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from koala_bundle.errors import CheckpointError, first_line, is_failure

PROBES = (
    "",
    "a photo of a koala",
    "  Crème   BRÛLÉE, it's 1,234.5!! \t\n<|endoftext|> _x_ ",
    "一只考拉 コアラ 🐨🌿 \u200b\ufb01 e\u0301 İ",
    "!" + " koala!" * 100,
)
"""Texts for which a converted tokenizer is compared with transformers' own; the last is longer than encoders read."""


def tokenizer_json(folder: Path, sequence_length: int, vocab_size: int | None = None) -> bytes:
    """Return tokenizer.json as ``_convert`` does, also of files that are nested too deeply for transformers."""
    try:
        return _convert(folder, sequence_length, vocab_size)
    except RecursionError:
        raise CheckpointError(
            str(folder),
            expected="a CLIP tokenizer",
            found="files with values that are nested too deeply",
            fix="download or copy the tokenizer again",
        ) from None


def _convert(folder: Path, sequence_length: int, vocab_size: int | None) -> bytes:
    """Return tokenizer.json for a folder of vocab.json and merges.txt, or of tokenizer.json.

    ``vocab_size`` is the number of rows of the text encoder's table, None if that is not to be checked.
    Raises CheckpointError if there is no tokenizer, it is not CLIP's, or ids differ from those of diffusers.
    """
    whole = (folder / "tokenizer.json").is_file()
    if not whole:
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    str(folder / name),
                    expected="a CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json)",
                    found="no file",
                    fix="copy the tokenizer folders of the checkpoint as well",
                )
    from transformers import CLIPTokenizer

    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except BaseException as error:  # transformers raises many kinds for a damaged file
        if not is_failure(error):
            raise
        raise CheckpointError(
            str(folder),
            expected="a CLIP tokenizer",
            found=f"files that do not load ({first_line(error)})",
            fix="download or copy the tokenizer again",
        ) from error
    _check_settings(folder, tokenizer, sequence_length)
    if vocab_size is not None:
        _check_ids(folder, tokenizer, vocab_size)
    vocabulary = tokenizer.get_vocab()
    if len({*vocabulary.values()}) < len(vocabulary):
        raise CheckpointError(
            str(folder),
            expected="a vocabulary in which every token has an id of its own",
            found="two tokens with one id",
            fix="download or copy vocab.json again",
        )
    try:
        converted = with_static_length(tokenizer, sequence_length)
        reread = Tokenizer.from_str(converted.decode())
    except BaseException as error:  # tokenizers raises bare Exceptions, and worse
        if not is_failure(error):
            raise
        raise CheckpointError(
            str(folder),
            expected="a tokenizer that can be written as tokenizer.json",
            found=f"one that cannot ({error})",
            fix="download or copy vocab.json and merges.txt again",
        ) from error
    _check_probes(folder, tokenizer, sequence_length, reread)
    return converted


def with_static_length(tokenizer: Any, sequence_length: int) -> bytes:
    """Return tokenizer.json of a transformers CLIPTokenizer, always ``sequence_length`` ids long."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=sequence_length, direction=tokenizer.truncation_side)
    backend.enable_padding(
        length=sequence_length,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        direction=tokenizer.padding_side,
    )
    return compact_json(backend)


def compact_json(tokenizer: Tokenizer) -> bytes:
    """Return tokenizer.json without the white space of the library's own."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")).encode()


def _check_settings(folder: Path, tokenizer: Any, sequence_length: int) -> None:
    """Refuse settings that diffusers obeys and a bundle cannot."""
    path, length = folder / "tokenizer_config.json", tokenizer.model_max_length
    unset = isinstance(length, int | float) and length > 10**20  # transformers' way to say that nothing is said
    if not unset and (type(length) is not int or length != sequence_length):
        raise CheckpointError(
            f"{path}: model_max_length",
            expected=f"{sequence_length}, the length that the text encoder reads",
            found=str(length),
            fix=f"set it to {sequence_length} if the model was trained with that",
        )
    if not isinstance(tokenizer.pad_token_id, int) or isinstance(tokenizer.pad_token_id, bool):
        raise CheckpointError(
            f"{path}: pad_token",
            expected="a token of the vocabulary",
            found=str(tokenizer.pad_token),
            fix="correct the file; SDXL's tokenizers pad with <|endoftext|> and with !",
        )
    added = tokenizer.added_tokens_encoder
    if several := sorted(token for token in added if f"{token}_1" in added):
        raise CheckpointError(
            str(folder),
            expected="one token for each word, as a bundle's tokenizer has no other",
            found=f"{several[0]!r} and {several[0] + '_1'!r}, a textual inversion of several vectors",
            fix="save the checkpoint without it (pipe.unload_textual_inversion())",
        )


def _check_ids(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    encoder = folder.name.replace("tokenizer", "text_encoder")
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise CheckpointError(
            str(folder),
            expected=f"ids below {vocab_size}, the vocab_size of {encoder}/config.json",
            found=f"{largest} for {token!r}",
            fix="resize the text encoder's embeddings (resize_token_embeddings), or remove the token, and save both",
        )


def _check_probes(folder: Path, tokenizer: Any, sequence_length: int, converted: Tokenizer) -> None:
    """Compare the converted tokenizer with transformers', called as diffusers calls it."""
    ours = [encoding.ids for encoding in converted.encode_batch([*PROBES])]
    wanted = tokenizer([*PROBES], padding="max_length", max_length=sequence_length, truncation=True).input_ids
    for probe, own, theirs in zip(PROBES, ours, wanted, strict=True):
        if own != theirs:
            raise CheckpointError(
                str(folder),
                expected="settings that a tokenizer.json can hold",
                found=f"ids that differ from transformers' for {probe[:20]!r}",
                fix="save the tokenizer again with CLIPTokenizer's own settings",
            )
