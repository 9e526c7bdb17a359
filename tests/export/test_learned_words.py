"""Files of learned words: what is read from them, and what is refused; their pictures are in ``test_compiled_in``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from koala_bundle.errors import ArgumentError
from koala_cli.main import run_app
from koala_export.checkpoint import FolderCheckpoint
from koala_export.learned_words import read_words
from koala_export.source import open_source

WIDTHS = {"text_encoder": 32, "text_encoder_2": 64}
SHAPE = "koala-700m-like"


def saved(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_words_of_every_form(tmp_path: Path) -> None:
    both = saved(tmp_path / "style.safetensors", clip_g=torch.ones(3, 64), clip_l=torch.ones(2, 32).half())
    one = saved(tmp_path / "learned_embeds.safetensors", **{"<cat>": torch.ones(64), "<dog>": torch.ones(1, 32)})
    words = {(word.text, word.encoder): word.tokens for word in read_words([both, one], WIDTHS)}
    assert words == {
        ("style", "text_encoder"): ["style", "style_1"],
        ("style", "text_encoder_2"): ["style", "style_1", "style_2"],
        ("<cat>", "text_encoder_2"): ["<cat>"],
        ("<dog>", "text_encoder"): ["<dog>"],
    }


def test_they_are_part_of_what_is_exported(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Rows after those of the tokenizer, for one text encoder; another digest than without, or with other vectors."""
    file = tmp_path / "<fog>.safetensors"
    digests = set()
    for value in (1.0, 2.0):
        saved(file, clip_l=torch.full((2, 32), value))
        opened = open_source(str(checkpoint(SHAPE)), random_weights=False, precision="fp32", embeddings=[file])
        digests.add(opened.digest())
    plain = FolderCheckpoint(checkpoint(SHAPE), "fp32")
    assert len({*digests, plain.digest()}) == 3
    before, after = (each.load("text_encoder", torch.float32).get_input_embeddings().weight for each in (plain, opened))
    assert torch.equal(after[:49408], before)
    assert torch.equal(after[49408:], torch.full((2, 32), 2.0))
    grown = Tokenizer.from_str(opened.tokenizer("tokenizer").decode())
    assert grown.encode("a <fog> <fog>_1").ids[1:5] == [320, 49408, 49409, 49407]
    assert opened.tokenizer("tokenizer_2") == plain.tokenizer("tokenizer_2")
    assert (opened.configs["text_encoder"]["vocab_size"], opened.configs["text_encoder_2"]["vocab_size"]) == (
        49410,
        49408,
    )


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("no.safetensors", None, "expected a safetensors file, found no file; check the path."),
        (
            "a.pt",
            {},
            "expected a safetensors file, found a .pt file, which may be a pickle; convert it once with safetensors",
        ),
        ("a.safetensors", {"clip_l": torch.ones(2, 33)}, "expected vectors of 32 or 64 numbers, the widths "),
        ("a.safetensors", {"<a>": torch.ones(2, 768)}, "expected vectors of 32 or 64 numbers, the widths "),
        (
            "a.safetensors",
            {"clip_l": torch.ones(2, 2, 32)},
            "expected vectors of 32 or 64 numbers, the widths ",
        ),
        (
            "a.safetensors",
            {"<a>": torch.full((1, 32), torch.nan)},
            "expected finite vectors, found NaN or infinity ",
        ),
        (
            "cat.safetensors",
            {"clip_l": torch.ones(1, 32)},
            "expected a word that the tokenizer does not have, found '",
        ),
    ],
    ids=["no file", "pickle", "width", "of a large model", "three axes", "not finite", "known word"],
)
def test_what_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str, tensors: dict[str, Tensor] | None, said: str
) -> None:
    file = tmp_path / name
    if tensors is not None:
        saved(file, **tensors)
    with pytest.raises(ArgumentError) as caught:
        open_source(str(checkpoint(SHAPE)), random_weights=False, precision="fp32", embeddings=[file])
    start, _, end = said.partition("*")
    assert str(caught.value).startswith(f"embedding {file}: {start}")
    assert end in str(caught.value)


def test_two_files_with_one_word(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [saved(tmp_path / name, clip_l=torch.ones(1, 32)) for name in ("a.safetensors", "other/a.safetensors")]
    with pytest.raises(ArgumentError, match="found 'a'; rename the file, or leave it out"):
        read_words(files, WIDTHS)


def test_the_command_line_says_it(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "style.pt"
    file.write_bytes(json.dumps({}).encode())
    for options, said in (
        (
            ("--embedding", str(file)),
            f"embedding {file}: expected a safetensors file, found a .pt file, which may be a ",
        ),
        (
            ("--prompt-chunks", "0"),
            "--prompt-chunks: expected 1 to 16, found 0; pass 2 for prompts of up to 150 tokens",
        ),
        (
            ("--clip-skip", "3"),
            "--clip-skip: expected 0 to 2, the layers before the last of the shorter text encoder, ",
        ),
        (
            ("--guidance-rescale", "--no-cfg"),
            "--guidance-rescale: expected a bundle with guidance, found one without; ",
        ),
    ):
        assert run_app(["export", str(checkpoint(SHAPE)), str(tmp_path / "new"), *options]) == 2
        assert f"error {said}" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
