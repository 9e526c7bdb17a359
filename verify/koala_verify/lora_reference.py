"""LoRAs in the reference: diffusers loads and fuses them with peft; the exporter's own sums have no part in it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor

from koala_bundle.errors import ArgumentError
from koala_export.lora import Lora, fit
from koala_export.lora_names import MODELS_WITH_LORA


def add_lora(pipe: Any, lora: Lora) -> None:
    """Have diffusers load a LoRA into ``pipe`` and fuse it. Raises ArgumentError where peft is not installed.

    The pairs are handed over in peft's format: of kohya's, diffusers leaves out the magnitudes of a DoRA, and takes the
    alpha of one layer for another's where their ranks differ.
    """
    if find_spec("peft") is None:
        raise ArgumentError(
            "loras",
            expected="the package peft, with which diffusers adds them to the reference",
            found="none",
            fix="install it with `pip install 'koala-trt[lora]'`",
        )
    pipe.load_lora_weights(in_peft_format(pipe, lora))
    pipe.fuse_lora(lora_scale=lora.scale)
    pipe.unload_lora_weights()


def in_peft_format(pipe: Any, lora: Lora) -> dict[str, Tensor]:
    """Return the pairs by peft's names, scaling included: diffusers then adds ``up @ down``."""
    models = {name: getattr(pipe, name) for name in MODELS_WITH_LORA}
    configs = {name: dict(pipe.unet.config) if name == "unet" else {} for name in models}
    found = fit(lora.pairs, models, configs).found
    state = {}
    for model, pairs in found.items():
        for layer, pair in pairs.items():
            state[f"{model}.{layer}.lora_A.weight"] = pair.down.float()
            state[f"{model}.{layer}.lora_B.weight"] = pair.up.float() * pair.scaling
            if pair.magnitude is not None:
                state[f"{model}.{layer}.lora_magnitude_vector.weight"] = pair.magnitude.flatten()
    return state
