"""Token ids are those of transformers' CLIPTokenizer for both text encoders, whatever the text.

The vocabulary is CLIP's own, so the golden ids are those of the published checkpoints.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koala_bundle.errors import ArgumentError, BundleError, CheckpointError
from koala_bundle.manifest import TOKENIZERS
from koala_export.tokenizer import tokenizer_json
from koala_runtime.prompts import MAX_CHARACTERS, PromptEncoder, check_text
from tests.support.checkpoints import save_clip_tokenizers

LENGTH = 77
START, END = 49406, 49407
CAT = "a photo of a cat"
LONG = "a very long description of a koala, " * 20
TEXTS = [
    CAT,
    "A PHOTO of a CaT",
    "!",
    "!!!",
    "Wow! A cat!!",
    " ! a ! b!c ",
    "crème brûlée, naïve façade, Ångström, e\u0301 and é, ﬁ, ß, İ",
    "🐨 asleep in a 🌿 tree 🎉🎉 👩‍🚀",
    "一只考拉在树上睡觉 コアラが木の上で眠る 코알라",
    "كوالا नमस्ते",
    LONG,
    "cat " * 75,
    "cat " * 76,
    "",
    " ",
    " \t\n\r  a\u00a0b\u3000c\u200b \x0b\x0c",
    "a\x00b\x01c\x7f\x85d\ufffd\ufeff",
    "it's we're I'll 1234567890 3.14 a_b",
    "<|endoftext|>",
    "a <|startoftext|> b<|endoftext|>c",
    "(masterpiece:1.2), [best] {quality} <lora:x:1> \\ / ~ ^ `",
]


@pytest.fixture(scope="module")
def checkpoint_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    save_clip_tokenizers(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint_tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """The encoder of a bundle, which holds nothing but two tokenizer.json."""
    bundle = tmp_path_factory.mktemp("bundle")
    for name in TOKENIZERS:
        (bundle / name).mkdir()
        (bundle / name / "tokenizer.json").write_bytes(tokenizer_json(checkpoint_tokenizers / name, LENGTH))
    return PromptEncoder((bundle / TOKENIZERS[0], bundle / TOKENIZERS[1]))


@pytest.fixture(scope="module")
def references(checkpoint_tokenizers: Path) -> list[Any]:
    """transformers' own tokenizers, loaded as diffusers loads them."""
    from transformers import CLIPTokenizer

    return [CLIPTokenizer.from_pretrained(checkpoint_tokenizers / name) for name in TOKENIZERS]


def assert_same_ids(encoder: PromptEncoder, references: list[Any], texts: list[str]) -> None:
    for ids, reference in zip((each.ids for each in encoder.encode(texts)), references, strict=True):
        assert ids.dtype == np.int32
        assert ids.shape == (len(texts), LENGTH)
        for text, row in zip(texts, ids.tolist(), strict=True):
            wanted = reference(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
            assert row == wanted, repr(text)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_are_those_of_transformers(encoder: PromptEncoder, references: list[Any], text: str) -> None:
    assert_same_ids(encoder, references, [text])


def test_a_list_is_its_texts_one_by_one(encoder: PromptEncoder, references: list[Any]) -> None:
    assert_same_ids(encoder, references, TEXTS)


any_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)  # check_text refuses surrogates


@given(text=any_text)
@example(text="!\x00!")
@settings(deadline=None, max_examples=300)
def test_ids_of_any_text(encoder: PromptEncoder, references: list[Any], text: str) -> None:
    assert_same_ids(encoder, references, [text])


@given(text=any_text)
@settings(deadline=None, max_examples=50)
def test_every_row_starts_and_ends_as_clip_expects(encoder: PromptEncoder, text: str) -> None:
    for ids in (each.ids for each in encoder.encode([text])):
        assert ids[0, 0] == START
        assert END in ids[0]  # the second encoder pools at the first of the largest id
        assert ids.min() >= 0
        assert ids.max() <= END


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (CAT, [320, 1125, 539, 320, 2368], [320, 1125, 539, 320, 2368]),
        ("Wow! A cat!!", [2781, 256, 320, 2368, 748], [2781, 0, 320, 2368, 0, 0]),
        ("", [], []),
    ],
)
def test_golden_ids(encoder: PromptEncoder, text: str, first: list[int], second: list[int]) -> None:
    """SDXL's second tokenizer pads with "!", id 0, and so reads every "!" as padding."""
    for ids, inner, pad in zip((each.ids for each in encoder.encode([text])), (first, second), (END, 0), strict=True):
        wanted = [START, *inner, END]
        assert ids[0].tolist() == wanted + [pad] * (LENGTH - len(wanted))


def test_a_prompt_that_is_cut_is_warned_of_once(encoder: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "koala_runtime"):
        encoder.encode(["cat " * 75, CAT])
        assert not caplog.records, "75 tokens between start and end fit"
        encoder.encode([CAT, LONG, "cat " * 76])
    assert [(record.name, record.levelname) for record in caplog.records] == [("koala_runtime.prompts", "WARNING")] * 2
    assert "the end of this prompt is ignored: a very long description" in caplog.records[0].getMessage()


def test_a_tokenizer_given_as_one_file_gives_the_same_bytes(checkpoint_tokenizers: Path, tmp_path: Path) -> None:
    """Newer repositories hold tokenizer.json in place of vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    for name in TOKENIZERS:
        folder = tmp_path / name
        CLIPTokenizer.from_pretrained(checkpoint_tokenizers / name).save_pretrained(folder)
        for old in ("vocab.json", "merges.txt"):
            (folder / old).unlink(missing_ok=True)
        assert (folder / "tokenizer.json").is_file()
        assert tokenizer_json(folder, LENGTH) == tokenizer_json(checkpoint_tokenizers / name, LENGTH)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer_is_refused(checkpoint_tokenizers: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(checkpoint_tokenizers / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"{missing}: expected a CLIP tokenizer .*, found no file; copy"):
        tokenizer_json(tmp_path / "tokenizer", LENGTH)


def test_a_damaged_tokenizer_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: expected a tokenizer, found "):
        PromptEncoder((tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (7, "expected a string, found int"),
        ("a" * (MAX_CHARACTERS + 1), "expected at most 20,000 characters, found 20,001"),
        ("ab\ud83d", "expected text that UTF-8 can hold, found a lone surrogate at character 2"),
    ],
    ids=["number", "document", "surrogate"],
)
def test_what_is_not_text_is_refused(text: object, found: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_text("prompt", text)
    assert str(caught.value).startswith(f"prompt: {found}; ")
