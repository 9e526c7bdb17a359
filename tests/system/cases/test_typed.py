"""Configurations are typed to the end: a wrong type, null, missing key or unknown switch names file and key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system.cases.support import FIRST, INDEX, SCHEDULER, SECOND, UNET, VAE, Case

WRONG: list[tuple[str, str, Any]] = [
    (INDEX, "feature_extractor", None),
    (INDEX, "feature_extractor", True),
    (INDEX, "feature_extractor", [[1], None]),
    (INDEX, "image_encoder", [1, None]),
    (INDEX, "image_encoder", ["", None]),
    (FIRST, "num_hidden_layers", 10**30),
    (UNET, "transformer_layers_per_block", 10**6),
    (UNET, "transformer_layers_per_block", [1, [10**6]]),
    (VAE, "layers_per_block", 10**9),
    (FIRST, "dtype", 0),
    (FIRST, "dtype", 1e9),
    (SECOND, "torch_dtype", "int8"),
    (SCHEDULER, "num_train_timesteps", None),
    (SCHEDULER, "num_train_timesteps", 1000.0),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "num_train_timesteps", "1000"),
    (SCHEDULER, "beta_start", None),
    (SCHEDULER, "beta_start", "0.00085"),
    (SCHEDULER, "beta_start", True),
    (SCHEDULER, "beta_start", -0.1),
    (SCHEDULER, "beta_end", [0.012]),
    (SCHEDULER, "beta_end", 1e400),
    (SCHEDULER, "beta_end", 2.0),
    (SCHEDULER, "steps_offset", None),
    (SCHEDULER, "steps_offset", 1.5),
    (SCHEDULER, "steps_offset", -1),
    (SCHEDULER, "beta_schedule", "squaredcos_cap_v2"),
    (SCHEDULER, "beta_schedule", None),
    (SCHEDULER, "prediction_type", "sample"),
    (SCHEDULER, "prediction_type", ["epsilon"]),
    (SCHEDULER, "timestep_spacing", "karras"),
    (SCHEDULER, "interpolation_type", None),
    (SCHEDULER, "use_karras_sigmas", 1),
    (SCHEDULER, "use_beta_sigmas", "yes"),
    (SCHEDULER, "use_exponential_sigmas", "yes"),
    (SCHEDULER, "timestep_type", "continuous"),
    (SCHEDULER, "final_sigmas_type", "small"),
    (SCHEDULER, "trained_betas", [0.1, 0.2]),
    (SCHEDULER, "rescale_betas_zero_snr", True),
    (VAE, "scaling_factor", None),
    (VAE, "scaling_factor", 0),
    (VAE, "scaling_factor", "0.13"),
    (VAE, "block_out_channels", None),
    (VAE, "block_out_channels", 8),
    (VAE, "block_out_channels", []),
    (VAE, "latent_channels", None),
    (VAE, "latent_channels", 4.0),
    (VAE, "out_channels", 4),
    (VAE, "force_upcast", None),
    (VAE, "force_upcast", "true"),
    (UNET, "block_out_channels", None),
    (UNET, "block_out_channels", [8, "16"]),
    (UNET, "in_channels", None),
    (UNET, "in_channels", 9),
    (UNET, "out_channels", 8),
    (UNET, "cross_attention_dim", None),
    (UNET, "cross_attention_dim", "40"),
    (UNET, "cross_attention_dim", [40, 41]),
    (UNET, "addition_embed_type", None),
    (UNET, "addition_time_embed_dim", None),
    (UNET, "addition_time_embed_dim", 9),
    (UNET, "projection_class_embeddings_input_dim", None),
    (UNET, "num_class_embeds", 10),
    (UNET, "class_embed_type", "timestep"),
    (UNET, "encoder_hid_dim_type", "text_proj"),
    (UNET, "time_cond_proj_dim", 256),
    (UNET, "sample_size", "16"),
    (UNET, "sample_size", [16, 16, 16]),
    (UNET, "sample_size", -1),
    (UNET, "layers_per_block", "one"),
    (UNET, "down_block_types", "DownBlock2D"),
    (UNET, "act_fn", 7),
    (UNET, "norm_num_groups", 4.5),
    (FIRST, "vocab_size", None),
    (FIRST, "hidden_size", "16"),
    (FIRST, "num_hidden_layers", None),
    (FIRST, "max_position_embeddings", 1),
    (FIRST, "hidden_act", 3),
    (SECOND, "projection_dim", None),
    (SECOND, "num_attention_heads", 5),
    (SECOND, "max_position_embeddings", 64),
    (INDEX, "_class_name", "StableDiffusionPipeline"),
    (INDEX, "_class_name", ["my_pipeline", "StableDiffusionXLPipeline"]),
    (INDEX, "_class_name", None),
    (INDEX, "force_zeros_for_empty_prompt", None),
    (INDEX, "force_zeros_for_empty_prompt", "false"),
    (INDEX, "vae", None),
    (INDEX, "vae", [None, None]),
    (INDEX, "unet", "UNet2DConditionModel"),
    (INDEX, "text_encoder", ["transformers"]),
    (INDEX, "scheduler", {"diffusers": "EulerDiscreteScheduler"}),
]


@pytest.mark.parametrize(("file", "key", "value"), WRONG, ids=[f"{f}:{k}={v!r}" for f, k, v in WRONG])
def test_a_wrong_value(case: Case, file: str, key: str, value: Any) -> None:
    said = {"beta_end": "beta", "beta_start": "beta", "num_attention_heads": "heads"}.get(key, key)
    said = "projection_class_embeddings_input_dim" if (key, value) == ("addition_time_embed_dim", 9) else said
    case.edit(file, **{key: value}).refused(file, said)


UNKNOWN = {
    SCHEDULER: {"clip_sample": False, "skip_prk_steps": True, "set_alpha_to_one": False, "sample_max_value": 1.0},
    UNET: {"some_new_key": 3, "_commit_hash": None},
    VAE: {"mid_block_attention": "?"},
    FIRST: {"gradient_checkpointing": False, "torch_dtype": "float16", "dropout": 0.0},
    INDEX: {"feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False},
}


@pytest.mark.parametrize("file", UNKNOWN)
def test_keys_that_diffusers_ignores(case: Case, file: str) -> None:
    case.edit(file, **UNKNOWN[file]).equal()


SWITCHES = {
    "leading": (SCHEDULER, {"timestep_spacing": "leading", "steps_offset": 1}),
    "linspace": (SCHEDULER, {"timestep_spacing": "linspace"}),
    "log linear": (SCHEDULER, {"interpolation_type": "log_linear"}),
    "linear betas": (SCHEDULER, {"beta_schedule": "linear", "beta_start": 0.001}),
    "v prediction": (SCHEDULER, {"prediction_type": "v_prediction"}),
    "few steps of training": (SCHEDULER, {"num_train_timesteps": 20}),
    "a null that is allowed": (SCHEDULER, {"use_karras_sigmas": False, "sigma_min": 0.03, "sigma_max": 14.6}),
    "karras": (SCHEDULER, {"use_karras_sigmas": True, "sigma_max": 14.0}),
    "a last level": (SCHEDULER, {"final_sigmas_type": "sigma_min"}),
    "larger betas": (SCHEDULER, {"beta_start": 0.001, "beta_end": 0.05}),
    "no zeros": (INDEX, {"force_zeros_for_empty_prompt": False}),
    "centred": (UNET, {"center_input_sample": True}),
    "other frequencies": (UNET, {"flip_sin_to_cos": False, "freq_shift": 1}),
    "upcast attention": (UNET, {"upcast_attention": True}),
    "another activation": (UNET, {"act_fn": "gelu"}),
    "scaled residuals": (UNET, {"resnet_out_scale_factor": 2.0}),
    "no sample size": (UNET, {"sample_size": None}),
    "latents' statistics": (VAE, {"latents_mean": [0.1] * 4, "latents_std": [0.9] * 4}),
    "shifted": (VAE, {"shift_factor": 0.1}),
    "quick gelu": (SECOND, {"hidden_act": "quick_gelu"}),
    "end of text at its id": (SECOND, {"eos_token_id": 5}),
    "another norm": (FIRST, {"layer_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_that_are_honoured(case: Case, switch: str) -> None:
    file, values = SWITCHES[switch]
    case.edit(file, **values).equal()


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, FIRST, SECOND, UNET, VAE])
@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\0", '{"a": NaN', "7", "[" * 5000, '"text"'], ids=range(9))
def test_a_file_that_is_no_object(case: Case, file: str, text: str) -> None:
    (case / file).write_text(text)
    case.refused(file)


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, FIRST, UNET])
def test_a_file_of_bytes(case: Case, file: str) -> None:
    (case / file).write_bytes(b"\xff\xfe{\x00}\x00")
    case.refused(file)


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, SECOND, VAE])
def test_a_missing_file(case: Case, file: str) -> None:
    (case / file).unlink()
    case.refused(file, "found no file")


@pytest.mark.parametrize("key", ["unet", "scheduler", "tokenizer", "_class_name"])
def test_a_missing_entry_of_the_index(case: Case, key: str) -> None:
    case.drop(INDEX, key).refused(f"model_index.json: {key}")


@pytest.mark.parametrize("key", ["addition_embed_type", "cross_attention_dim", "projection_class_embeddings_input_dim"])
def test_a_missing_key_of_the_unet(case: Case, key: str) -> None:
    case.drop(UNET, key).refused(f"unet/config.json: {key}")


def test_missing_keys_that_have_defaults(case: Case) -> None:
    case.drop(UNET, "center_input_sample", "dropout", "norm_eps").drop(SCHEDULER, "steps_offset", "beta_end")
    case.drop(FIRST, "hidden_act", "layer_norm_eps").drop(VAE, "force_upcast").equal()


def test_numbers_of_any_size(case: Case) -> None:
    text = json.dumps(case.json(UNET)).replace('"sample_size": 16', f'"sample_size": {10**30}')
    (case / UNET).write_text(text)
    case.refused("unet/config.json: sample_size")
