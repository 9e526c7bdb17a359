"""LoRAs: files of small matrices that an export adds to the weights, in float32, before these are rounded once.

A file is refused unless every pair of its matrices has a layer of this checkpoint. Files for SDXL have pairs for layers
that KOALA does not have; leaving those out draws something that nobody trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from koala_bundle.errors import ArgumentError
from koala_bundle.files import file_entry
from koala_bundle.manifest import LoraEntry
from koala_export.configs import Config
from koala_export.libraries import make_model
from koala_export.lora_file import Pair, find_file, read_pairs
from koala_export.lora_names import MODELS_WITH_LORA, SGM_BLOCKS, SGM_LAYERS_PER_BLOCK, names_of
from koala_export.presets import PRESETS, configs

_TRAINED_FOR = "pass a LoRA that was trained for this model; those for SDXL do not fit KOALA, which has fewer blocks"
_SHOWN = 120  # characters of a name from a file


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA and how strongly it is added."""

    file: Path
    scale: float
    entry: LoraEntry
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Fit:
    """Which pairs of a file have a layer: by model, a layer's name and its pair. Of the others, why they have none."""

    found: dict[str, dict[str, Pair]]
    unknown: tuple[str, ...]
    other_shapes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many have one."""
        return sum(len(pairs) for pairs in self.found.values())


def read_loras(given: Sequence[str]) -> tuple[Lora, ...]:
    """Read files given as ``FILE[:SCALE]``, the file local or on the hub. Raises ArgumentError for one that is none."""
    return tuple(_read(text) for text in given)


def _read(text: str) -> Lora:
    file, scale = find_file(text)
    return Lora(file, scale, LoraEntry(file.name, file_entry(file).sha256, scale), read_pairs(file))


def fit(pairs: Iterable[Pair], models: dict[str, Any], configs: Mapping[str, Config]) -> Fit:
    """Return which layers of ``models``, by their names in MODELS_WITH_LORA, the pairs belong to.

    Only names and shapes are looked at: the models may be on torch's meta device.
    """
    layers = {
        name: (model, layer, module)
        for model, whole in models.items()
        for layer, module in whole.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for name in names_of(model, layer, configs[model])
    }
    found: dict[str, dict[str, Pair]] = {model: {} for model in models}
    unknown, other_shapes = [], []
    for pair in pairs:
        if pair.layer not in layers:
            unknown.append(pair.layer)
            continue
        model, layer, module = layers[pair.layer]
        if layer in found[model]:
            other_shapes.append(f"{pair.layer[:_SHOWN]} (a second pair for one layer)")
        elif complaint := _misfit(pair, module):
            other_shapes.append(f"{pair.layer[:_SHOWN]} ({complaint})")
        else:
            found[model][layer] = pair
    return Fit(found, tuple(unknown), tuple(other_shapes))


def _misfit(pair: Pair, module: Any) -> str | None:
    """Return why a pair is not of a layer's shape; None if it is."""
    weight, down, up = module.weight, pair.down, pair.up
    rank = down.shape[0]
    wanted = ((rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.ndim - 2)))
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        return f"{_shape(up)} by {_shape(down)}, for weights of {_shape(weight)}"
    if pair.magnitude is not None and pair.magnitude.numel() != weight.shape[0]:
        return f"{pair.magnitude.numel()} magnitudes, for weights of {_shape(weight)}"
    if isinstance(module, torch.nn.Conv2d) and module.groups != 1:
        return "a convolution in groups"
    return None


def check_fit(lora: Lora, configs: Mapping[str, Config]) -> None:
    """Raise ArgumentError unless each pair of a LoRA has a layer of the models with these configurations."""
    fitted = fit(lora.pairs, _empty_models(configs), configs)
    if not (fitted.unknown or fitted.other_shapes):
        _refuse_names_of_sdxl(lora, configs)
        return
    reasons = []
    if fitted.unknown:
        reasons.append(f"{len(fitted.unknown)} name no layer, such as {fitted.unknown[0][:_SHOWN]}")
    if fitted.other_shapes:
        reasons.append(f"{len(fitted.other_shapes)} have another shape, such as {fitted.other_shapes[0]}")
    raise ArgumentError(
        f"lora {lora.file}",
        expected=f"a layer of this checkpoint for each of its {len(lora.pairs)} pairs of matrices",
        found=f"one for {fitted.count} of them ({'; '.join(reasons)})",
        fix=_TRAINED_FOR,
    )


def _refuse_names_of_sdxl(lora: Lora, found: Mapping[str, Config]) -> None:
    """Refuse a file whose names mean other layers in SDXL's U-Net, and whose shapes fit there.

    Names of the kind input_blocks.3 count the layers of all blocks before; with another number of layers in a block the
    same name is another layer.
    """
    own = found["unet"].get("layers_per_block", 2)  # diffusers' default
    counted = [pair for pair in lora.pairs if any(kind in pair.layer for kind in SGM_BLOCKS)]
    if own == SGM_LAYERS_PER_BLOCK or not counted:
        return
    sdxl = dict(configs(PRESETS["sdxl-base"]))
    if fit(counted, {"unet": _empty_models(sdxl)["unet"]}, sdxl).count == len(counted):
        raise ArgumentError(
            f"lora {lora.file}",
            expected=f"names of layers that mean the same in SDXL and in a U-Net of {own} layers per block",
            found=f"{len(counted)} pairs that fit SDXL, such as {counted[0].layer[:_SHOWN]}, another layer there",
            fix=_TRAINED_FOR + "; if this one was, save it with diffusers' names (down_blocks, up_blocks)",
        )


def _empty_models(found: Mapping[str, Config]) -> dict[str, Any]:
    with torch.device("meta"):
        return {name: make_model(name, found[name]) for name in MODELS_WITH_LORA}


def fuse(
    module: torch.nn.Module, model: str, loras: Sequence[Lora], config: Config, dtype: torch.dtype
) -> torch.nn.Module:
    """Add the pairs of ``loras`` to ``module``, whose weights are float32, and return it in ``dtype``.

    W + scale * up @ down, for convolutions on flattened kernels; with magnitudes m (DoRA, arXiv 2402.09353) m * V / |V|
    of that V, by output. Raises ArgumentError if the result is not finite.
    """
    for lora in loras:
        for name, pair in fit(lora.pairs, {model: module}, {model: config}).found[model].items():
            weight: Any = module.get_submodule(name).weight.data
            change = (pair.up.float().flatten(1) @ pair.down.float().flatten(1)).reshape(weight.shape)
            weight += lora.scale * pair.scaling * change
            if pair.magnitude is not None:
                columns = [-1, *[1] * (weight.ndim - 1)]
                length = torch.linalg.vector_norm(weight.flatten(1), dim=1)
                weight *= (pair.magnitude.float().flatten() / length).reshape(columns)
            if not weight.to(dtype).isfinite().all():
                raise ArgumentError(
                    f"lora {lora.file}",
                    expected=f"finite weights in {str(dtype).removeprefix('torch.')} at scale {lora.scale:g}",
                    found=f"NaN or infinity in {name} of {model}",
                    fix="pass a smaller scale",
                )
    return module.to(dtype)


def touched(loras: Iterable[Lora], model: str) -> list[Lora]:
    """Return the LoRAs that have pairs for ``model``, one of the checkpoint's."""
    return [lora for lora in loras if any(pair.model == model for pair in lora.pairs)]


def _shape(tensor: Any) -> str:
    return " x ".join(str(side) for side in tensor.shape)
