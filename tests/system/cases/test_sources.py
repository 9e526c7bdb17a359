"""Two files that say one thing each: the one that diffusers obeys decides here, or the folder is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala_export.checkpoint import FolderCheckpoint
from tests.system.cases.support import FIRST, INDEX, SCHEDULER, SECOND, UNET, VAE, Case

SINGLE, STEM = "unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model"


def shard(case: Case, folder: str, stem: str, dot: str = "", index: str | None = None, scale: float = 1) -> str:
    """Write the weights of a folder as two shards with an index; return the index's name."""
    weights = {k: v * scale for k, v in load_file(case / f"{folder}/{stem}.safetensors").items()}
    names = sorted(weights)
    parts = {f"{stem}{dot}-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, keys in parts.items():
        save_file({key: weights[key].contiguous() for key in keys}, case / f"{folder}/{file}", {"format": "pt"})
    index = index or f"{stem}.safetensors.index{dot}.json"
    listed = {key: file for file, keys in parts.items() for key in keys}
    (case / f"{folder}/{index}").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return f"{folder}/{index}"


def double(case: Case, old: str, new: str) -> None:
    save_file({k: v * 2 for k, v in load_file(case / old).items()}, case / new, {"format": "pt"})


def test_index_names_another_scheduler_than_its_folder(case: Case) -> None:
    case.edit(INDEX, scheduler=["diffusers", "EulerAncestralDiscreteScheduler"]).equal()


def test_a_scheduler_by_its_defaults(case: Case) -> None:
    """DDIM's default is to clip, which the folder of another class does not say."""
    case.edit(INDEX, scheduler=["diffusers", "DDIMScheduler"]).refused(
        "scheduler/scheduler_config.json: clip_sample: expected false, found true", "latents have no bounds"
    )
    case.edit(SCHEDULER, clip_sample=False).equal()


def test_a_scheduler_that_is_not_computed(case: Case) -> None:
    case.edit(INDEX, scheduler=["diffusers", "SASolverScheduler"]).refused(
        "model_index.json: scheduler: expected one of the schedulers that can be computed",
        "found SASolverScheduler",
    )


def test_scheduler_folder_names_another_class_than_the_index(case: Case) -> None:
    case.edit(SCHEDULER, _class_name="DPMSolverMultistepScheduler", solver_order=3).equal()


def test_scheduler_folder_names_ancestral(case: Case) -> None:
    case.edit(SCHEDULER, _class_name="EulerAncestralDiscreteScheduler").equal()


def test_scheduler_file_without_class(case: Case) -> None:
    case.drop(SCHEDULER, "_class_name").equal()


def test_values_that_diffusers_takes_as_defaults(case: Case) -> None:
    found = case.edit(SCHEDULER, _use_default_values=["beta_start", "timestep_spacing"], beta_start=0.5).equal()
    assert found.spec.scheduler["beta_start"] == 0.0001


def test_vae_values_that_diffusers_takes_as_defaults(case: Case) -> None:
    found = case.edit(VAE, _use_default_values=["scaling_factor"]).equal()
    assert found.spec.vae.scaling_factor == 0.18215


def test_unet_file_names_another_class(case: Case) -> None:
    case.edit(UNET, _class_name="UNetMotionModel").equal()


def test_index_names_another_unet(case: Case) -> None:
    case.edit(INDEX, unet=["diffusers", "UNetMotionModel"]).refused("model_index.json: unet", "UNet2DConditionModel")


def test_index_names_another_vae(case: Case) -> None:
    name = "AsymmetricAutoencoderKL"
    case.edit(INDEX, vae=["diffusers", name]).refused("model_index.json: vae", "AutoencoderKL or AutoencoderTiny", name)


def test_index_names_a_tiny_vae_whose_weights_are_not(case: Case) -> None:
    case.edit(INDEX, vae=["diffusers", "AutoencoderTiny"]).refused("/vae: expected weights for every parameter")


def test_index_names_an_encoder_without_projection(case: Case) -> None:
    case.edit(INDEX, text_encoder_2=["transformers", "CLIPTextModel"]).refused("model_index.json: text_encoder_2")


def test_index_names_the_other_library(case: Case) -> None:
    case.edit(INDEX, unet=["my_unet", "UNet2DConditionModel"]).refused("model_index.json: unet", "my_unet")


def test_architectures_say_otherwise(case: Case) -> None:
    case.edit(FIRST, architectures=["CLIPModel"]).edit(SECOND, architectures=["CLIPTextModel"]).equal()


def test_text_configuration_inside_a_whole_clip(case: Case) -> None:
    inner = case.json(FIRST)
    (case / FIRST).write_text(json.dumps({"model_type": "clip", "hidden_size": 999, "text_config": inner}))
    assert case.equal().spec.text_encoder.hidden_size == 16


def test_configuration_by_version_of_the_library(case: Case) -> None:
    shutil.copy(case / SECOND, case / "text_encoder_2/config.4.0.0.json")
    case.edit(SECOND, configuration_files=["config.4.0.0.json"], hidden_size=999).equal()


def test_unet_index_before_single_file(case: Case) -> None:
    shard(case, "unet", STEM, scale=2)
    found = case.equal()
    assert found.checkpoint.weights["unet"].files[0].name == f"{STEM}.safetensors.index.json"


def test_text_encoder_single_file_before_index(case: Case) -> None:
    shard(case, "text_encoder", "model", scale=2)
    found = case.equal()
    assert [path.name for path in found.checkpoint.weights["text_encoder"].files] == ["model.safetensors"]


def test_vae_index_before_single_file_of_the_variant(case: Case) -> None:
    shutil.copy(case / f"vae/{STEM}.safetensors", case / f"vae/{STEM}.fp16.safetensors")
    shard(case, "vae", STEM, ".fp16", scale=0.5)
    case.equal("fp16", "fp16")


def test_variant_is_one_for_the_whole_pipeline(case: Case) -> None:
    """The U-Net has both; the text encoder only fp16: diffusers cannot mix, so fp16 it is, for both precisions."""
    double(case, SINGLE, f"unet/{STEM}.fp16.safetensors")
    case.rename("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors")
    case.equal("fp16")


def test_plain_weights_for_float32(case: Case) -> None:
    double(case, SINGLE, f"unet/{STEM}.fp16.safetensors")
    case.equal(None)


def test_variant_for_float16(case: Case) -> None:
    double(case, SINGLE, f"unet/{STEM}.fp16.safetensors")
    case.equal("fp16", "fp16")


def test_stray_tensors_of_another_training(case: Case) -> None:
    double(case, SINGLE, f"unet/{STEM}.non_ema.safetensors")
    case.equal()


def test_weights_under_another_name_in_the_configuration(case: Case) -> None:
    double(case, "text_encoder/model.safetensors", "text_encoder/other.safetensors")
    case.edit(FIRST, transformers_weights="other.safetensors").refused("text_encoder/config.json: transformers_weights")


def test_an_adapter_beside_the_text_encoder(case: Case) -> None:
    (case / "text_encoder/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    case.refused("text_encoder/adapter_config.json: expected no adapter")


def test_quantised_unet(case: Case) -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    case.edit(UNET, quantization_config=config).refused("unet/config.json: quantization_config", "found bitsandbytes")


def test_quantised_text_encoder(case: Case) -> None:
    case.edit(SECOND, quantization_config={"quant_method": "gptq"}).refused("text_encoder_2/config.json", "gptq")


DIGESTS = {
    "index": lambda case: shard(case, "unet", STEM, scale=2),
    "shard": lambda case: double(case, SINGLE, f"unet/{STEM}-00001-of-00002.safetensors"),
    "configuration by version": lambda case: (case / "text_encoder/config.4.0.0.json").write_text("{}"),
    "added tokens": lambda case: (case / "tokenizer/added_tokens.json").write_text("{}"),
    "merges": lambda case: (case / "tokenizer/merges.txt").write_text("#version: 0.2\n"),
    "tokenizer.json": lambda case: (case / "tokenizer_2/tokenizer.json").write_text("{}"),
    "an index's entry": lambda case: case.edit(INDEX, force_zeros_for_empty_prompt=False),
}


@pytest.mark.parametrize("change", DIGESTS)
def test_whatever_a_library_may_read_is_hashed(case: Case, change: str) -> None:
    if change == "shard":
        shard(case, "unet", STEM)
    before = FolderCheckpoint(case.folder, "fp32").digest()
    DIGESTS[change](case)
    assert FolderCheckpoint(case.folder, "fp32").digest() != before


def test_what_no_library_reads_is_not_hashed(case: Case) -> None:
    before = FolderCheckpoint(case.folder, "fp32").digest()
    (case / "README.md").write_text("a card")
    (case / "unet/.DS_Store").write_bytes(b"\0")
    (case / "tokenizer/.ipynb_checkpoints").mkdir()
    double(case, SINGLE, f"unet/{STEM}.fp16.safetensors")
    assert FolderCheckpoint(case.folder, "fp32").digest() == before


OPENED: dict[str, tuple[str, Callable[[Case], object]]] = {
    "plain": ("fp32", lambda case: None),
    "index and single": ("fp32", lambda case: [shard(case, "unet", STEM), shard(case, "text_encoder", "model")]),
    "variant": ("fp16", lambda case: double(case, SINGLE, f"unet/{STEM}.fp16.safetensors")),
    "variant in shards": ("fp16", lambda case: [shard(case, "unet", STEM, ".fp16"), shard(case, "vae", STEM)]),
}


@pytest.mark.parametrize("layout", OPENED)
def test_what_is_hashed_is_what_is_loaded(case: Case, layout: str) -> None:
    precision, change = OPENED[layout]
    change(case)
    checkpoint = FolderCheckpoint(case.folder, precision)
    for model in ("unet", "vae", "text_encoder_2"):
        files = (path for path in checkpoint.weights[model].files if path.suffix == ".safetensors")
        hashed = {key: weight for path in files for key, weight in load_file(path).items()}
        loaded = checkpoint.load(model, torch.float32).state_dict()
        assert all(torch.equal(loaded[key], weight) for key, weight in hashed.items())
