"""Small random LoRAs for a checkpoint, in every format that is read; ``saved`` writes one of KINDS.

The names are made by rules of their own, those of the trainers, not by the exporter's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
ATTENTION = re.compile(r"to_[qkv]$|to_out\.0$|ff\.net\.(0\.proj|2)$|proj_(in|out)$|(q|k|v|out)_proj$|fc[12]$")
CONVOLUTION = re.compile(r"conv[12]$|conv_shortcut$|(down|up)samplers\.0\.conv$")
RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}


def layers_of(models: dict[str, Any], pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return the layers, "model.layer", whose names end as a pattern says; text encoders' names with text_model."""
    found = {}
    for model, whole in models.items():
        for name, module in whole.named_modules():
            if pattern.search(name) and hasattr(module, "weight"):
                stem = "" if model == "unet" or name.startswith("text_model.") else "text_model."
                found[f"{model}.{stem}{name}"] = module
    return found


def matrices(layers: dict[str, Any], rank: Callable[[int], int] = lambda _: 4, size: float = 1.0) -> dict[str, Any]:
    """Return down and up of each layer, of such a size that a picture changes visibly."""
    generator, pairs = torch.Generator().manual_seed(5), {}
    for place, (name, module) in enumerate(layers.items()):
        weight, r = module.weight, rank(place)
        down = torch.randn(r, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(weight.shape[0], r, *[1] * (weight.ndim - 2), generator=generator)
        pairs[name] = (down, up * size / (weight[0].numel() * r) ** 0.5)
    return pairs


def in_peft_format(pairs: dict[str, Any]) -> Tensors:
    state = {f"{name}.lora_A.weight": down for name, (down, _) in pairs.items()}
    return state | {f"{name}.lora_B.weight": up for name, (_, up) in pairs.items()}


def in_old_format(pairs: dict[str, Any]) -> Tensors:
    """As diffusers 0.1x wrote attentions."""
    state = {}
    for name, (down, up) in pairs.items():
        if name.startswith("unet."):
            old = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1_lora", name)
        else:
            old = re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", name)
        state |= {f"{old}.down.weight": down, f"{old}.up.weight": up}
    return state


def in_kohya_format(pairs: dict[str, Any], rename: Callable[[str], str] = lambda name: name) -> Tensors:
    """As sd-scripts and LyCORIS write it, with an alpha of half the rank; ``rename`` is for the U-Net's layers."""
    state = {}
    for name, (down, up) in pairs.items():
        model, _, layer = name.partition(".")
        start = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[model]
        flat = f"{start}_{(rename(layer) if model == 'unet' else layer).replace('.', '_')}"
        state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": 2 * up}
        state[f"{flat}.alpha"] = torch.tensor(down.shape[0] / 2)
    return state


def sgm(layers_per_block: int) -> Callable[[str], str]:
    """Return what turns diffusers' names into those of SDXL's original code, whose blocks are counted in one row."""

    def rename(layer: str) -> str:
        words = layer.split(".")
        if words[0] == "mid_block":
            row, rest = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[words[1] + words[2]], words[3:]
            start = f"middle_block.{row}"
        else:
            side, block, kind, number, *rest = words
            row = int(block) * (layers_per_block + 1) + int(number)
            if side == "down_blocks":
                row += 1 + (layers_per_block if kind == "downsamplers" else 0)
                start = f"input_blocks.{row}.{1 if kind == 'attentions' else 0}"
                if kind == "downsamplers":
                    return f"{start}.op"
            elif kind == "upsamplers":
                return f"output_blocks.{row + layers_per_block}.2.conv"
            else:
                start = f"output_blocks.{row}.{1 if kind == 'attentions' else 0}"
        return ".".join([start, *(RESNET.get(word, word) for word in rest)])

    return rename


def magnitudes(layers: dict[str, Any]) -> Tensors:
    """Return lengths of weights as a DoRA has learned them: a tenth longer or shorter."""
    generator, found = torch.Generator().manual_seed(6), {}
    for name, module in layers.items():
        length = module.weight.detach().float().flatten(1).norm(dim=1)
        found[name] = length * (1 + 0.1 * torch.randn(len(length), generator=generator))
    return found


def save_kinds(models: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write a file of every kind for these models, "unet", "text_encoder" and "text_encoder_2"; return them by kind."""
    from peft import LoraConfig

    linear = layers_of(models, ATTENTION)
    attentions = {name: module for name, module in linear.items() if re.search(r"to_|[qkv]_proj$|out_proj$", name)}
    both = linear | layers_of({"unet": models["unet"]}, CONVOLUTION)
    unet = layers_of({"unet": models["unet"]}, ATTENTION)
    count = models["unet"].config.layers_per_block
    dora = in_peft_format(matrices(linear))
    dora |= {f"{name}.lora_magnitude_vector.weight": value for name, value in magnitudes(linear).items()}
    kohya_dora = in_kohya_format(matrices(unet))
    for name, value in magnitudes(unet).items():
        kohya_dora[f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}.dora_scale"] = value[:, None]
    settings = {}
    for model in models:
        own = (name.removeprefix(f"{model}.") for name in linear if name.startswith(f"{model}."))
        names = [name.removeprefix("text_model.") for name in own]  # peft compares the ends of names
        config = LoraConfig(r=4, lora_alpha=2, target_modules=names).to_dict()
        settings |= {f"{model}.{key}": [*value] if isinstance(value, set) else value for key, value in config.items()}
    states = {
        "peft": in_peft_format(matrices(linear)),
        "peft-alpha": in_peft_format(matrices(linear, size=2.0)),
        "old": in_old_format(matrices(attentions)),
        "kohya": in_kohya_format(matrices(linear)),
        "kohya-sgm": in_kohya_format(matrices(both), sgm(count)),
        "locon": in_kohya_format(matrices(both)),
        "ranks": in_kohya_format(matrices(linear, rank=lambda place: 1 + place % 5)),
        "dora": dora,
        "kohya-dora": kohya_dora,
        "text": in_peft_format(matrices(layers_of({"text_encoder": models["text_encoder"]}, ATTENTION), size=3.0)),
        "half": {name: tensor.half() for name, tensor in in_kohya_format(matrices(linear)).items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for kind, state in states.items():
        files[kind] = folder / f"{kind}.safetensors"
        header = {"lora_adapter_metadata": json.dumps(settings)} if kind == "peft-alpha" else {}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, files[kind], {"format": "pt"} | header)
    return files


def empty_models(configs: dict[str, Any], names: Iterable[str] = ("unet", "text_encoder", "text_encoder_2")) -> Any:
    """Return models of these configurations on torch's meta device."""
    from koala_export.libraries import make_model

    with torch.device("meta"):
        return {name: make_model(name, configs[name]) for name in names}
