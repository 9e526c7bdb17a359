"""Tokenizer settings: honoured to the last id, or refused by name. Ids beyond the encoder's table are refused."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.system.cases.support import FIRST, INDEX, SECOND, TOKENIZER, TOKENIZER_2, Case

START, END = "<|startoftext|>", "<|endoftext|>"


def test_padding_on_the_left(case: Case) -> None:
    case.edit(TOKENIZER, padding_side="left").equal()


def test_truncation_on_the_left(case: Case) -> None:
    case.edit(TOKENIZER_2, truncation_side="left").equal()


def test_both_sides_left_in_both(case: Case) -> None:
    for file in (TOKENIZER, TOKENIZER_2):
        case.edit(file, padding_side="left", truncation_side="left")
    case.equal()


def test_a_shorter_length(case: Case) -> None:
    case.edit(TOKENIZER, model_max_length=20).refused("tokenizer_config.json: model_max_length", "expected 77", "20")


def test_a_longer_length(case: Case) -> None:
    case.edit(TOKENIZER_2, model_max_length=248).refused("tokenizer_2/tokenizer_config.json: model_max_length", "248")


def test_length_as_text(case: Case) -> None:
    case.edit(TOKENIZER, model_max_length="77").refused("tokenizer_config.json", "77")


def test_length_not_said(case: Case) -> None:
    """diffusers pads to 10^30 and fails; the encoder's own length is meant."""
    case.drop(TOKENIZER, "model_max_length").equal()


def test_another_pad_token(case: Case) -> None:
    case.edit(TOKENIZER, pad_token="!").edit("tokenizer/special_tokens_map.json", pad_token="!").equal()


def test_the_map_and_the_configuration_disagree_on_the_pad(case: Case) -> None:
    case.edit(TOKENIZER, pad_token="!").equal()


def test_the_map_alone_changes_the_pad(case: Case) -> None:
    case.edit("tokenizer_2/special_tokens_map.json", pad_token=END).equal()


def test_pad_token_that_is_new(case: Case) -> None:
    case.edit(TOKENIZER, pad_token="<pad>").edit("tokenizer/special_tokens_map.json", pad_token="<pad>").refused(
        "tokenizer: expected ids below"
    )


def test_pad_token_null(case: Case) -> None:
    case.edit(TOKENIZER, pad_token=None).drop("tokenizer/special_tokens_map.json", "pad_token")
    case.refused("tokenizer_config.json: pad_token")


def test_special_tokens_as_objects(case: Case) -> None:
    token = {"content": END, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    case.edit("tokenizer/special_tokens_map.json", eos_token=token, unk_token=token).equal()


def test_a_special_token_that_strips(case: Case) -> None:
    token = {"__type": "AddedToken", "content": END, "lstrip": True, "normalized": False, "rstrip": True}
    case.edit(TOKENIZER, eos_token=token | {"single_word": False}).equal()


def test_special_tokens_in_prompts_are_split(case: Case) -> None:
    case.edit(TOKENIZER, split_special_tokens=True)
    read_or_refused(case)


def test_case_is_kept(case: Case) -> None:
    case.edit(TOKENIZER, do_lower_case=False).equal()


def test_space_before_the_first_word(case: Case) -> None:
    case.edit(TOKENIZER, add_prefix_space=True).equal()


def test_no_start_and_end(case: Case) -> None:
    case.edit(TOKENIZER, add_bos_token=False, add_eos_token=False).equal()


def test_other_errors_setting(case: Case) -> None:
    case.edit(TOKENIZER, errors="ignore", clean_up_tokenization_spaces=True).equal()


def test_tokenizer_class_of_another_model(case: Case) -> None:
    case.edit(TOKENIZER, tokenizer_class="GPT2Tokenizer").equal()


def test_tokenizer_class_fast(case: Case) -> None:
    case.edit(INDEX, tokenizer=["transformers", "CLIPTokenizerFast"]).equal()


def test_tokenizer_of_another_class_in_the_index(case: Case) -> None:
    case.edit(INDEX, tokenizer_2=["transformers", "T5Tokenizer"]).refused(
        "model_index.json: tokenizer_2", "T5Tokenizer"
    )


def test_merges_with_carriage_returns(case: Case) -> None:
    path = case / "tokenizer/merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    case.equal()


def test_merges_without_a_version_line(case: Case) -> None:
    path = case / "tokenizer/merges.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    read_or_refused(case)


def test_merges_cut_in_a_line(case: Case) -> None:
    path = case / "tokenizer/merges.txt"
    path.write_text("#version: 0.2\nqu al\nbroken")
    read_or_refused(case)


def test_empty_merges(case: Case) -> None:
    (case / "tokenizer_2/merges.txt").write_text("#version: 0.2\n")
    case.equal()


def test_vocabulary_with_a_byte_order_mark(case: Case) -> None:
    path = case / "tokenizer/vocab.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read_or_refused(case)


def test_tokenizer_json_alone(case: Case) -> None:
    as_one_file(case)
    for name in ("vocab.json", "merges.txt"):
        (case / f"tokenizer/{name}").unlink(missing_ok=True)
    case.equal()


def test_tokenizer_json_beside_another_vocabulary(case: Case) -> None:
    as_one_file(case)
    (case / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    case.equal()


def test_tokenizer_json_that_truncates_itself(case: Case) -> None:
    as_one_file(case)
    path = case / "tokenizer/tokenizer.json"
    data = json.loads(path.read_text())
    data["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(data))
    case.equal()


def test_tokenizer_json_with_another_normaliser(case: Case) -> None:
    as_one_file(case)
    path = case / "tokenizer/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": None}))
    case.equal()


def test_checkpoints_of_notebooks_in_the_folder(case: Case) -> None:
    (case / "tokenizer/.ipynb_checkpoints").mkdir()
    (case / "tokenizer/.ipynb_checkpoints/vocab-checkpoint.json").write_text("{")
    (case / "tokenizer/old.json").symlink_to("nowhere.json")
    case.equal()


def test_no_tokenizer_folder(case: Case) -> None:
    import shutil

    shutil.rmtree(case / "tokenizer_2")
    case.refused("tokenizer_2/vocab.json", "found no file")


def test_vocabulary_that_is_a_list(case: Case) -> None:
    (case / "tokenizer/vocab.json").write_text('["a", "b"]')
    case.refused("/tokenizer: expected a CLIP tokenizer")


@pytest.mark.parametrize("length", [77.0, True, "77"])
def test_a_length_of_another_type(case: Case, length: object) -> None:
    case.edit("tokenizer/tokenizer_config.json", model_max_length=length)
    case.refused("tokenizer_config.json: model_max_length")


@pytest.mark.parametrize("file", ["tokenizer/vocab.json", "tokenizer_2/vocab.json"])
def test_two_tokens_with_one_id(case: Case, file: str) -> None:
    vocabulary = case.json(file)
    first, second = [*vocabulary][60:62]
    (case / file).write_text(json.dumps({**vocabulary, first: vocabulary[second]}))
    case.refused(f"{file.split('/')[0]}: expected a vocabulary in which every token has an id of its own")


# --- ids


def rows(case: Case) -> int:
    return int(case.json(FIRST)["vocab_size"])


def test_an_added_token_without_a_row(case: Case) -> None:
    (case / "tokenizer/added_tokens.json").write_text(json.dumps({"<cat-toy>": rows(case)}))
    case.refused("tokenizer: expected ids below", "<cat-toy>", "resize_token_embeddings")


def test_an_added_token_in_the_second_without_a_row(case: Case) -> None:
    (case / "tokenizer_2/added_tokens.json").write_text(json.dumps({"<cat-toy>": rows(case)}))
    case.refused("tokenizer_2: expected ids below", "<cat-toy>")


def test_an_added_token_with_a_row(case: Case) -> None:
    import torch

    (case / "tokenizer/added_tokens.json").write_text(json.dumps({"koalaish": rows(case)}))
    name = next(key for key in load_file(case / "text_encoder/model.safetensors") if "token_embedding" in key)
    case.weights("text_encoder/model.safetensors", lambda w: w | {name: torch.cat([w[name], w[name][:1]])})
    case.edit(FIRST, vocab_size=rows(case) + 1).equal()


def test_a_smaller_table(case: Case) -> None:
    name = next(key for key in load_file(case / "text_encoder_2/model.safetensors") if "token_embedding" in key)
    case.weights("text_encoder_2/model.safetensors", lambda w: w | {name: w[name][:-5].contiguous()})
    case.edit(SECOND, vocab_size=rows(case) - 5).refused("tokenizer_2: expected ids below", END)


def test_a_textual_inversion_of_two_vectors(case: Case) -> None:
    import torch

    first = rows(case)
    (case / "tokenizer/added_tokens.json").write_text(json.dumps({"<toy>": first, "<toy>_1": first + 1}))
    name = next(key for key in load_file(case / "text_encoder/model.safetensors") if "token_embedding" in key)
    case.weights("text_encoder/model.safetensors", lambda w: w | {name: torch.cat([w[name], w[name][:2]])})
    case.edit(FIRST, vocab_size=first + 2).refused("tokenizer: expected one token for each word", "'<toy>_1'")


def test_a_row_in_the_added_tokens_decoder(case: Case) -> None:
    token = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    case.edit(TOKENIZER, added_tokens_decoder={str(rows(case)): token | {"special": True}}).refused("'<x>'")


def read_or_refused(case: Case) -> None:
    """Both are right: as diffusers reads it, or a sentence that names the folder."""
    from koala_bundle.errors import CheckpointError
    from tests.system.cases.support import read

    try:
        read(case.folder)
    except CheckpointError as error:
        assert str(case.folder) in str(error)
    else:
        case.equal()


def as_one_file(case: Case) -> None:
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(case / "tokenizer").save_pretrained(case / "tokenizer")
    assert (case / "tokenizer/tokenizer.json").is_file()
