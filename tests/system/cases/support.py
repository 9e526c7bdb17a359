"""The smallest checkpoint, changed by a case; read by this project and by diffusers, and both compared."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from koala_bundle.errors import CheckpointError, KoalaError
from koala_bundle.spec import ModelSpec
from koala_export.checkpoint import FolderCheckpoint
from koala_export.configs import MODELS, native_size, read_spec
from koala_runtime.prompts import PromptEncoder
from koala_runtime.samplers import Schedule, make_scheduler
from koala_tiny.checkpoint import save_checkpoint
from koala_tiny.tokenizer import merges_of_prompts

PROMPTS = ["", "a small red circle", "  Crème BRÛLÉE!! it's <|endoftext|> 考拉 🐨 ", "! " + "koala " * 90]
UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
FIRST, SECOND, INDEX = "text_encoder/config.json", "text_encoder_2/config.json", "model_index.json"
TOKENIZER, TOKENIZER_2 = "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"
CONFIGS = (INDEX, SCHEDULER, FIRST, SECOND, UNET, VAE)


def save_smallest(folder: Path) -> Path:
    """Write a checkpoint of the SDXL shape with two resolutions, whose parts are read in a tenth of a second."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    merges = merges_of_prompts()
    text = {"vocab_size": 514 + len(merges), "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return save_checkpoint(
        folder,
        merges,
        fp16=False,
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8] * 4,
            norm_num_groups=4,
            scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=16, projection_dim=16, **text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, projection_dim=24, **text)),
        unet=UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type=None,
            layers_per_block=1,
            transformer_layers_per_block=1,
            block_out_channels=(8, 16),
            attention_head_dim=(1, 2),
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            use_linear_projection=True,
            norm_num_groups=4,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


def copy_checkpoint(source: Path, target: Path) -> Path:
    """Copy JSON and text; link weights, which cases replace and never change in place."""
    return shutil.copytree(
        source, target, copy_function=lambda a, b: os.link(a, b) if a.endswith(".safetensors") else shutil.copy(a, b)
    )


@dataclass(frozen=True)
class Read:
    """A checkpoint that was read to the end: everything that an export takes from it."""

    checkpoint: FolderCheckpoint
    spec: ModelSpec
    tokenizers: tuple[bytes, bytes]
    models: dict[str, Any]


def read(folder: Path, precision: str = "fp32") -> Read:
    """Read everything that an export reads. Raises KoalaError, and nothing else."""
    checkpoint = FolderCheckpoint(folder, precision)
    spec = read_spec(checkpoint.configs)
    native_size(checkpoint.configs, spec)
    checkpoint.digest()
    checkpoint.check()
    tokenizers = checkpoint.tokenizer("tokenizer"), checkpoint.tokenizer("tokenizer_2")
    return Read(checkpoint, spec, tokenizers, {name: checkpoint.load(name, torch.float32) for name in MODELS})


class Case:
    """One checkpoint of a case, to be changed, then asserted about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def json(self, file: str) -> Any:
        return json.loads((self / file).read_text())

    def edit(self, file: str, **changes: Any) -> Case:
        (self / file).write_text(json.dumps(self.json(file) | changes))
        return self

    def drop(self, file: str, *keys: str) -> Case:
        (self / file).write_text(json.dumps({k: v for k, v in self.json(file).items() if k not in keys}))
        return self

    def rename(self, old: str, new: str) -> Case:
        (self / old).rename(self / new)
        return self

    def weights(self, file: str, change: Any) -> Case:
        """Replace a weight file by what ``change`` makes of its tensors."""
        from safetensors.torch import load_file, save_file

        held = {name: weight.clone() for name, weight in load_file(self / file).items()}
        (self / file).unlink()
        save_file(change(held), self / file, {"format": "pt"})
        return self

    def refused(self, *parts: str, precision: str = "fp32") -> None:
        """Assert that reading ends in one sentence with these parts, of an input error."""
        with pytest.raises(CheckpointError) as caught:
            read(self.folder, precision)
        assert not [part for part in parts if part not in str(caught.value)], str(caught.value)

    def equal(self, variant: str | None = None, precision: str = "fp32") -> Read:
        """Assert that all that decides a picture is what diffusers' own pipeline has."""
        found = read(self.folder, precision)
        assert_equal(found, diffusers_of(self.folder, variant))
        return found


def diffusers_of(folder: Path, variant: str | None = None) -> Any:
    """Return diffusers' own pipeline of a folder."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        folder, variant=variant, use_safetensors=True, local_files_only=True, add_watermarker=False
    )


def assert_equal(found: Read, pipe: Any) -> None:
    """Compare classes, switches, weights, noise levels and token ids with those of diffusers' pipeline."""
    spec = found.spec
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert pipe.config.force_zeros_for_empty_prompt == spec.force_zeros_for_empty_prompt
    assert pipe.vae_scale_factor == spec.vae.scale_factor
    assert pipe.vae.config.scaling_factor == spec.vae.scaling_factor
    for name, module in found.models.items():
        theirs = getattr(pipe, name)
        assert type(module) is type(theirs)
        ignored = {"_name_or_path", "dtype", "torch_dtype", "_diffusers_version"}
        ours, wanted = ({k: v for k, v in dict(m.config if name in ("unet", "vae") else m.config.to_dict()).items()
                         if k not in ignored} for m in (module, theirs))  # fmt: skip
        assert ours == wanted
        expected = theirs.state_dict()
        assert module.state_dict().keys() == expected.keys()
        assert all(torch.equal(weight, expected[key].float()) for key, weight in module.state_dict().items())
    assert type(pipe.scheduler).__name__ == spec.scheduler.class_name
    for steps in (1, 3, 10):
        steps = min(steps, spec.scheduler["num_train_timesteps"])
        table = make_scheduler(spec.scheduler).table(Schedule(steps))
        pipe.scheduler.set_timesteps(steps)
        np.testing.assert_allclose(table.timesteps, pipe.scheduler.timesteps.numpy(), rtol=1e-6)
        np.testing.assert_allclose(table.init_noise_sigma, float(pipe.scheduler.init_noise_sigma), rtol=2e-5)
        if spec.scheduler.class_name == "EulerDiscreteScheduler":
            sigmas = pipe.scheduler.sigmas.numpy()[: len(table.scales)]  # of log_linear's, all that are used
            np.testing.assert_allclose(table.scales, 1 / np.hypot(sigmas, 1), rtol=2e-5, atol=1e-6)
    config = pipe.scheduler.config
    assert all(config[key] == value for key, value in spec.scheduler.values.items() if config.get(key) is not None)
    for data, tokenizer in zip(found.tokenizers, (pipe.tokenizer, pipe.tokenizer_2), strict=True):
        length = min(tokenizer.model_max_length, spec.text_encoder.sequence_length)
        wanted = tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True).input_ids
        assert ids(data) == wanted


def ids(tokenizer: bytes) -> list[list[int]]:
    """Return the ids of PROMPTS by a bundle's tokenizer.json."""
    from tokenizers import Tokenizer

    return [encoding.ids for encoding in Tokenizer.from_str(tokenizer.decode()).encode_batch(PROMPTS)]


def outcome(call: Any) -> str | None:
    """Return the sentence with which ``call`` ends, None where it does its work; anything else is a fault."""
    try:
        call()
    except KoalaError as error:
        return str(error)
    return None


__all__ = ["Case", "PromptEncoder"]
