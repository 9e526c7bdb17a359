"""What layers are called in files of LoRAs: every name that the trainers in use give a layer of the checkpoint.

Names are made from the model's own, never taken apart: one that is not among them has no layer.
"""

from __future__ import annotations

import re

from koala_export.configs import Config

MODELS_WITH_LORA = ("unet", "text_encoder", "text_encoder_2")
SGM_BLOCKS = ("input_blocks", "middle_block", "output_blocks")
SGM_LAYERS_PER_BLOCK = 2
"""Of SDXL, whose original code ("sgm") counts the layers of all blocks in one row."""
KOHYA = {"unet": ("lora_unet",), "text_encoder": ("lora_te1", "lora_te"), "text_encoder_2": ("lora_te2",)}
"""Prefixes of sd-scripts and LyCORIS, which put ``_`` for every dot."""

_OLD_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_MIDDLE = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}


def names_of(model: str, layer: str, config: Config) -> set[str]:
    """Return what ``layer`` of one of MODELS_WITH_LORA may be called in a file, without what stands for the matrix.

    ``layer`` is its name in the module, ``config`` the model's.
    """
    if model == "unet":
        plain, counted = {layer}, sgm_name(layer, config)
        old = re.sub(r"\.(attn\d)\.(to_[qkv]|to_out)(\.0)?$", r".\1.processor.\2", layer)
    else:
        bare = layer.removeprefix("text_model.")  # transformers 5 has it in one of the two text encoders only
        plain, counted = {bare, f"text_model.{bare}"}, None
        stem, _, last = layer.rpartition(".")
        old = f"{stem}.{_OLD_ATTENTION[last]}" if last in _OLD_ATTENTION else layer
        old = f"text_model.{old.removeprefix('text_model.')}"
    flat = {name.replace(".", "_") for name in (*plain, *([counted] if counted else []))}
    return {f"{model}.{name}" for name in (*plain, old)} | {
        f"{kohya}_{name}" for kohya in KOHYA[model] for name in flat
    }


def sgm_name(layer: str, config: Config) -> str | None:
    """Return what SDXL's original code would call a layer of a U-Net; None if it has no name for it."""
    if layer in _SGM_OUTSIDE:
        return _SGM_OUTSIDE[layer]
    layers = config.get("layers_per_block", 2)  # diffusers' default
    place = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+?)\.(\d+)\.(.+)", layer)
    if not isinstance(layers, int) or place is None:
        return None
    side, block, kind, number, rest = place[1], int(place[2] or 0), place[3], place[4], place[5]
    if kind == "resnets":
        if rest not in _SGM_RESNET:
            return None
        rest = _SGM_RESNET[rest]
    if side == "mid":
        return f"middle_block.{_SGM_MIDDLE[kind, number]}.{rest}" if (kind, number) in _SGM_MIDDLE else None
    first = block * (layers + 1)
    if kind in ("resnets", "attentions"):
        inner = ("resnets", "attentions").index(kind)
        row = first + int(number)
        return f"input_blocks.{row + 1}.{inner}.{rest}" if side == "down" else f"output_blocks.{row}.{inner}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    attentions = str(config["up_block_types"][block]).startswith("CrossAttn")
    return f"output_blocks.{first + layers}.{2 if attentions else 1}.conv" if kind == "upsamplers" else None
