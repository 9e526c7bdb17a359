"""CLIP's byte-pair tokenizers as the real repositories hold them: vocab.json, merges.txt and two configs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from koala_tiny.scenes import BACKGROUNDS, COLOURS, OPENINGS, OTHER_WORDS, PLACES, RADII, RELATIONS, SHAPES

START, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"tokenizer": END, "tokenizer_2": "!"}
"""SDXL's two tokenizers differ in what they fill a short prompt with."""


def merges_of_prompts() -> list[str]:
    """Return the merges that make one token of every word in a prompt; other words are read byte by byte.

    Byte-pair encoding (Sennrich et al., arXiv 1508.07909): the most frequent pair is merged first, and of equally
    frequent ones that whose parts have been there longer, so that the result is always the same.
    """
    wordings = (wording for several in OTHER_WORDS.values() for wording in several)
    places = (*PLACES, *RELATIONS, *wordings, *OPENINGS, "shape and on a background an")
    text = " ".join((*SHAPES, *COLOURS, *BACKGROUNDS, *RADII, *places))
    words = [(*word[:-1], f"{word[-1]}</w>") for word in sorted(set(text.split()))]
    known = sorted({part for word in words for part in word}, key=lambda part: (part.endswith("</w>"), part))
    age = {part: i for i, part in enumerate(known)}
    merges = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        one, other = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]))
        merges.append(f"{one} {other}")
        age[one + other] = len(age)
        words = [_merge(word, one, other) for word in words]
    return merges


def _merge(word: tuple[str, ...], one: str, other: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == (one, other):
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def vocabulary(merges: Iterable[str]) -> list[str]:
    """Return the tokens in CLIP's order: bytes, bytes that end a word, merges, start and end of text."""
    characters = _byte_characters()
    ends = [character + "</w>" for character in characters]
    return [*characters, *ends, *("".join(merge.split()) for merge in merges), START, END]


def save_tokenizers(folder: Path, merges: list[str]) -> None:
    """Write ``tokenizer`` and ``tokenizer_2`` into ``folder``."""
    vocab = json.dumps({token: i for i, token in enumerate(vocabulary(merges))}, ensure_ascii=False)
    for name, pad in PADS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "vocab.json").write_text(vocab, encoding="utf-8")
        (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        (place / "special_tokens_map.json").write_text(json.dumps(special))
        (place / "tokenizer_config.json").write_text(json.dumps(config))


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, in CLIP's order: the printable ones first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
