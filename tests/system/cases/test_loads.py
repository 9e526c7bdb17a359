"""What diffusers loads is not refused for a word in a file; and what is refused is told in words that help."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.system.cases.support import FIRST, INDEX, SCHEDULER, SECOND, UNET, Case
from tests.system.cases.test_sources import STEM, shard

MODELS = {"text_encoder": "model", "text_encoder_2": "model", "unet": STEM, "vae": STEM}


def variant(case: Case, name: str, *folders: str) -> None:
    """Rename the weights of folders (of all, by default) to a variant."""
    for folder in folders or MODELS:
        stem = f"{folder}/{MODELS[folder]}"
        case.rename(f"{stem}.safetensors", f"{stem}.{name}.safetensors")


def test_cross_attention_width_as_a_list(case: Case) -> None:
    case.edit(UNET, cross_attention_dim=[40, 40]).equal()


def test_depths_as_lists(case: Case) -> None:
    case.edit(UNET, transformer_layers_per_block=[1, 1], layers_per_block=[1, 1], attention_head_dim=[1, 2]).equal()


def test_head_count_under_its_new_name(case: Case) -> None:
    case.edit(UNET, num_attention_heads=None).equal()


def test_text_encoders_without_architectures(case: Case) -> None:
    case.drop(FIRST, "architectures").drop(SECOND, "architectures").equal()


def test_architectures_null(case: Case) -> None:
    case.edit(FIRST, architectures=None).edit(SECOND, architectures=[]).equal()


def test_bf16_variant(case: Case) -> None:
    variant(case, "bf16")
    for precision in ("fp16", "fp32"):
        case.equal("bf16", precision)


def test_fp16_variant_for_float32(case: Case) -> None:
    variant(case, "fp16")
    case.equal("fp16")


def test_one_variant_of_another_name(case: Case) -> None:
    variant(case, "ema")
    case.equal("ema")


def test_two_variants_of_other_names(case: Case) -> None:
    variant(case, "ema")
    for folder, stem in MODELS.items():
        shutil.copy(case / f"{folder}/{stem}.ema.safetensors", case / f"{folder}/{stem}.non_ema.safetensors")
    case.refused("text_encoder", "found the variants ema and non_ema", "rename")


def test_variant_of_the_unet_alone(case: Case) -> None:
    variant(case, "fp16", "unet")
    case.equal("fp16", "fp16")


def test_variants_that_do_not_meet(case: Case) -> None:
    variant(case, "fp16", "unet")
    variant(case, "bf16", "vae")
    case.refused("expected weights of one variant for all models")


def test_older_name_of_an_index(case: Case) -> None:
    """As diffusers 0.29 saved shards of a variant (accelerate#2946)."""
    shard(case, "unet", STEM, ".fp16", index=f"{STEM}.safetensors.fp16.index.json")
    (case / f"unet/{STEM}.safetensors").unlink()
    if "." not in str(case.folder):
        case.equal("fp16", "fp16")


def test_older_names_of_index_and_shards(case: Case) -> None:
    name = f"unet/{STEM}.safetensors.fp16.index.json"
    shard(case, "unet", STEM, ".fp16", index=Path(name).name)
    data = json.loads((case / name).read_text())
    for i in (1, 2):
        old, new = f"{STEM}.fp16-0000{i}-of-00002.safetensors", f"{STEM}-0000{i}-of-00002.fp16.safetensors"
        case.rename(f"unet/{old}", f"unet/{new}")
        data["weight_map"] = {key: new if file == old else file for key, file in data["weight_map"].items()}
    (case / name).write_text(json.dumps(data))
    if "." not in str(case.folder):
        case.equal("fp16", "fp16")


@pytest.mark.parametrize("folder", MODELS)
def test_shards(case: Case, folder: str) -> None:
    shard(case, folder, MODELS[folder])
    (case / f"{folder}/{MODELS[folder]}.safetensors").unlink()
    case.equal()


INDEXES = {
    "no weight map": ({"metadata": {}}, "weight_map"),
    "empty weight map": ({"metadata": {}, "weight_map": {}}, "weight_map"),
    "weight map of numbers": ({"metadata": {}, "weight_map": {"a": 1}}, "weight_map"),
    "weight map null": ({"metadata": {}, "weight_map": None}, "weight_map"),
    "a list": ([], "expected a JSON object"),
    "no metadata": ({"weight_map": {"a": "b.safetensors"}}, "metadata"),
    "metadata null": ({"metadata": None, "weight_map": {"a": "b"}}, "metadata"),
    "shard that is not there": ({"metadata": {}, "weight_map": {"a": "b.safetensors"}}, "b.safetensors"),
    "shard elsewhere": ({"metadata": {}, "weight_map": {"a": "../vae/config.json"}}, "config.json"),
}


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_that_says_nothing(case: Case, index: str) -> None:
    data, part = INDEXES[index]
    (case / f"unet/{STEM}.safetensors.index.json").write_text(json.dumps(data))
    case.refused("unet/", part)


def test_shard_without_a_tensor(case: Case) -> None:
    name = shard(case, "unet", STEM)
    data = json.loads((case / name).read_text())
    shards = sorted({*data["weight_map"].values()})
    save_file({}, case / f"unet/{shards[0]}")
    case.refused("unet: expected weights for every parameter", "missing")


def test_weights_in_bfloat16(case: Case) -> None:
    case.weights(f"unet/{STEM}.safetensors", lambda w: {k: v.bfloat16() for k, v in w.items()}).equal()


def test_weights_without_metadata(case: Case) -> None:
    path = case / "text_encoder_2/model.safetensors"
    held = {name: weight.clone() for name, weight in load_file(path).items()}
    path.unlink()
    save_file(held, path)
    case.equal()


def test_tensors_that_no_model_has(case: Case) -> None:
    case.weights(f"vae/{STEM}.safetensors", lambda w: w | {"loss.logvar": torch.zeros(1)}).equal()


def test_position_ids_of_older_transformers(case: Case) -> None:
    extra = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    case.weights("text_encoder/model.safetensors", lambda w: w | extra).equal()


def test_vae_with_its_older_attention_names(case: Case) -> None:
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, old in new.items():
            weights = {k.replace(f"attentions.0.{name}.", f"attentions.0.{old}."): v for k, v in weights.items()}
        return weights

    case.weights(f"vae/{STEM}.safetensors", older).equal()


def test_weights_of_another_width(case: Case) -> None:
    case.weights(f"unet/{STEM}.safetensors", lambda w: {k: v[:3].contiguous() for k, v in w.items()}).refused("/unet:")


def test_weights_that_are_a_text(case: Case) -> None:
    (case / f"vae/{STEM}.safetensors").unlink()
    (case / f"vae/{STEM}.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    case.refused(f"vae/{STEM}.safetensors: expected a whole safetensors file")


def test_weights_of_no_bytes(case: Case) -> None:
    (case / "text_encoder/model.safetensors").unlink()
    (case / "text_encoder/model.safetensors").touch()
    case.refused("text_encoder/model.safetensors: expected a whole safetensors file")


def test_a_link_that_leads_nowhere(case: Case) -> None:
    (case / f"unet/{STEM}.safetensors").unlink()
    (case / f"unet/{STEM}.safetensors").symlink_to("gone")
    case.refused("/unet: expected", "found no weights")


def test_pickles_only(case: Case) -> None:
    case.rename("text_encoder_2/model.safetensors", "text_encoder_2/pytorch_model.bin").refused(
        "text_encoder_2", "a pickle, which can run code"
    )


def test_an_image_encoder_that_is_not_used(case: Case) -> None:
    case.edit(INDEX, image_encoder=[None, None], feature_extractor=[None, None]).equal()


def test_other_files_beside(case: Case) -> None:
    for name in ("unet/LICENSE.md", "unet/openvino_model.bin", "vae/model.onnx", "sd_xl.safetensors", "unet/a.gguf"):
        (case / name).write_bytes(b"0")
    case.equal()


# --- advice


def test_zero_terminal_snr_is_not_to_be_switched_off(case: Case) -> None:
    """InvokeAI#7601: the advice to save with False would give other pictures."""
    case.edit(SCHEDULER, rescale_betas_zero_snr=True).refused(
        "rescale_betas_zero_snr: expected false with prediction_type epsilon, found true", "set v_prediction if"
    )
    case.edit(SCHEDULER, prediction_type="v_prediction").equal()


def test_trained_betas(case: Case) -> None:
    case.edit(SCHEDULER, trained_betas=[0.1]).refused("trained_betas", "another value gives other pictures")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("folder", ["text_encoder", "unet", "vae"])
def test_weights_that_are_not_finite(case: Case, folder: str, value: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[max(weights)].view(-1)[0] = value
        return weights

    case.weights(f"{folder}/{MODELS[folder]}.safetensors", spoil).refused(
        f"/{folder}: ", "expected finite weights in float32, found 1 of", "download the checkpoint again"
    )


def test_weights_beyond_float16(case: Case) -> None:
    from koala_bundle.errors import CheckpointError
    from koala_export.checkpoint import FolderCheckpoint

    case.weights(f"unet/{STEM}.safetensors", lambda w: {k: v * 1e6 if "conv_in.bias" in k else v for k, v in w.items()})
    with pytest.raises(CheckpointError) as caught:
        FolderCheckpoint(case.folder, "fp16").load("unet", torch.float16)
    assert "conv_in.bias: expected finite weights in float16" in str(caught.value)
    assert "export with precision fp32" in str(caught.value)
    assert case.equal()
