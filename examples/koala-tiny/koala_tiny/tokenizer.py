"""CLIP's byte-pair tokenizers as the real repositories hold them: vocab.json, merges.txt and two configs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from koala_tiny.scenes import BACKGROUNDS, COLOURS, OPENINGS, OTHER_WORDS, PLACES, RADII, RELATIONS, SHAPES

START, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"tokenizer": END, "tokenizer_2": "!"}
"""SDXL's two tokenizers differ in what they fill a short prompt with."""


def merges_of_prompts() -> list[str]:
    """Return the merges that make one token of every word in a prompt; other words are read byte by byte."""
    wordings = (wording for several in OTHER_WORDS.values() for wording in several)
    places = (*PLACES, *RELATIONS, *wordings, *OPENINGS, "shape and on a background an")
    text = " ".join((*SHAPES, *COLOURS, *BACKGROUNDS, *RADII, *places))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(sorted(set(text.split())), trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


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
