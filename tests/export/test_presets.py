"""Presets against published numbers: parameter counts, file sizes, and what diffusers builds.

Every model is built on torch's meta device, so nothing is allocated and no file is read. Not
covered: the weights, and whether the recommended steps and guidance give good images.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala_export.configs import native_size, read_spec
from koala_export.presets import PRESETS, configs

KOALA_700M = 782_822_724  # published: 782M (card); fp16 file 1.57 GB, ComfyUI's depths
KOALA_1B = 1_161_184_324  # published: 1,161M (card); fp16 file 2.32 GB
SDXL = 2_567_463_684  # published: 2,567M (KOALA cards' table); fp16 file 5.14 GB

UNET_PARAMETERS = {
    "koala-700m": KOALA_700M,
    "koala-1b": KOALA_1B,
    "koala-lightning-700m": KOALA_700M,
    "koala-lightning-1b": KOALA_1B,
    "koala-700m-llava-cap": KOALA_700M,
    "koala-1b-llava-cap": KOALA_1B,
    "sdxl-base": SDXL,
    "sdxl-lightning": SDXL,
    "sdxl-turbo": SDXL,
    "koala-turbo-700m": KOALA_700M,
    "koala-turbo-1b": KOALA_1B,
    "ssd-1b": 1_331_334_404,  # published: 1.3B (arXiv 2401.02677); files 2.66 and 5.33 GB
    "ssd-vega": 745_225_604,  # published: 0.74B (same paper, cut off); files 1.49 and 2.98 GB
}

every_preset = pytest.mark.parametrize("name", PRESETS)


@cache
def build_unet(name: str) -> Any:
    unet: Any = UNet2DConditionModel
    with torch.device("meta"):
        return unet(**PRESETS[name].unet)


def read(name: str) -> Any:
    """Return the preset's files as code that loads them sees them: untyped."""
    return configs(PRESETS[name])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_preset_is_for_1024_pixels_or_turbo() -> None:
    for name in PRESETS:
        side = 512 if "turbo" in name else 1024
        assert native_size(read(name), read_spec(read(name))) == (side, side)


def test_names() -> None:
    assert list(PRESETS) == list(UNET_PARAMETERS)


@every_preset
def test_unet_parameter_count(name: str) -> None:
    assert count(build_unet(name)) == UNET_PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("koala-700m", 1.57),
        ("koala-1b", 2.32),
        ("sdxl-base", 5.14),
        ("ssd-1b", 2.66),
        ("ssd-vega", 1.49),
    ],
)
def test_unet_size_is_that_of_the_published_fp16_file(name: str, gigabytes: float) -> None:
    """Listings round to 10 MB; the file's header adds some 0.2 MB to the two bytes a parameter."""
    assert count(build_unet(name)) * 2 / 1e9 == pytest.approx(gigabytes, abs=0.0055)


def test_vega_block_sizes() -> None:
    """segmind's blog gives Vega's down, mid and up blocks: 247, 31 and 460 million parameters."""
    unet = build_unet("ssd-vega")
    millions = [count(b) / 1e6 for b in (unet.down_blocks, unet.mid_block, unet.up_blocks)]
    assert [round(m) for m in millions] == [247, 31, 460]


def transformer_depths(blocks: Any) -> list[list[int]]:
    return [[len(attention.transformer_blocks) for attention in getattr(block, "attentions", [])] for block in blocks]


def test_asymmetric_depths_of_ssd_1b() -> None:
    """ComfyUI: down 0 0 2 2 4 4; up 0 0 0 1 1 2 10 4 4, read from its end as the network runs."""
    unet = build_unet("ssd-1b")
    assert transformer_depths(unet.down_blocks) == [[], [2, 2], [4, 4]]
    assert transformer_depths(unet.up_blocks) == [[4, 4, 10], [2, 1, 1], []]


@every_preset
def test_mid_block(name: str) -> None:
    mid = build_unet(name).mid_block
    if "700m" in name:
        assert mid is None
    elif name.startswith("ssd-"):
        assert len(mid.resnets) == 1 and len(mid.attentions) == 0
    else:
        assert len(mid.resnets) == 2 and len(mid.attentions) == 1


@every_preset
def test_unet_config_is_complete(name: str) -> None:
    """Nothing is left to diffusers' defaults, and diffusers records the very same values."""
    unet = PRESETS[name].unet
    assert set(unet) == set(inspect.signature(UNet2DConditionModel.__init__).parameters) - {"self"}
    config = json.loads(json.dumps(build_unet(name).config))
    assert {key: config[key] for key in unet} == unet


@every_preset
def test_configs_survive_json(name: str) -> None:
    files = read(name)
    assert json.loads(json.dumps(files)) == files
    for file in files.values():
        assert "_class_name" in file or {"architectures", "model_type"} <= set(file)


def test_configs_are_the_callers_own() -> None:
    """Presets share lists; a caller that edits its copy must not edit the presets."""
    first = read("koala-700m")
    first["unet"]["block_out_channels"].append(1)
    first["scheduler"]["steps_offset"] = 0
    second = read("koala-700m")
    assert second["unet"]["block_out_channels"] == [320, 640, 1280]
    assert second["scheduler"]["steps_offset"] == 1


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("text_encoder", 565),
        ("text_encoder_2", 575),
        ("scheduler", 479),
        ("model_index", 609),
    ],
)
def test_file_sizes_are_those_published(part: str, size: int) -> None:
    """Hugging Face lists these byte counts for the KOALA and SDXL-base repositories alike."""
    file = read("koala-700m")[part]
    assert len(json.dumps(file, indent=2).encode()) + len("\n") == size


@every_preset
def test_model_index_names_the_components(name: str) -> None:
    files = read(name)
    index = files["model_index"]
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True and index["add_watermarker"] is None
    for part in ("unet", "vae", "scheduler"):
        assert index[part] == ["diffusers", files[part]["_class_name"]]
    for part in ("text_encoder", "text_encoder_2"):
        assert index[part] == ["transformers", *files[part]["architectures"]]


@pytest.mark.parametrize(
    ("part", "model", "parameters"),
    [
        ("text_encoder", CLIPTextModel, 123_060_480),  # fp16 file: 246 MB
        ("text_encoder_2", CLIPTextModelWithProjection, 694_659_840),  # fp16 file: 1.39 GB
    ],
)
def test_text_encoders(part: str, model: Any, parameters: int) -> None:
    files = [read(name)[part] for name in PRESETS]
    assert all(file == files[0] for file in files)
    with torch.device("meta"):
        encoder = model(CLIPTextConfig(**files[0]))
    assert count(encoder) == parameters
    assert files[0]["architectures"] == [model.__name__]


@pytest.mark.parametrize("name", ["koala-700m", "sdxl-base"])
def test_vae(name: str) -> None:
    preset = PRESETS[name]
    autoencoder: Any = AutoencoderKL
    with torch.device("meta"):
        vae = autoencoder.from_config(read(name)["vae"])
    assert count(vae) == 83_653_863  # SDXL's, and SD's before it; fp32 file: 335 MB
    assert vae.config.force_upcast is preset.force_upcast
    assert vae.config.scaling_factor == 0.13025


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # NumPy 2 on diffusers' tensors
@every_preset
def test_scheduler_takes_the_recommended_spacing(name: str) -> None:
    """The Lightning folders ship "leading"; their cards override it after loading. Turbo's ships "trailing"."""
    preset = PRESETS[name]
    file = read(name)["scheduler"]
    assert file["timestep_spacing"] == ("trailing" if "turbo" in name else "leading")
    euler: Any = getattr(diffusers, preset.scheduler)
    assert ("Ancestral" in preset.scheduler) is ("turbo" in name)
    shipped = euler.from_config(file)
    scheduler = euler.from_config(shipped.config, timestep_spacing=preset.timestep_spacing)
    scheduler.set_timesteps(preset.num_inference_steps)
    assert len(scheduler.timesteps) == preset.num_inference_steps
    # Only trailing spacing starts at the noisiest training timestep.
    starts_at_the_end = bool(scheduler.timesteps[0] == 999)
    assert starts_at_the_end is (preset.timestep_spacing == "trailing")
