"""A LoRA's file: pairs of matrices by layer, as diffusers, peft, sd-scripts (kohya) and LyCORIS (LoCon) write them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from koala_bundle.errors import ArgumentError
from koala_export.lora_names import KOHYA, MODELS_WITH_LORA

_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""What may follow the name of a layer, and what it is. Older files of diffusers have ``_lora.down.weight``."""
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoCon of three matrices",
    "oft_": "OFT",
    "boft_": "BOFT",
    "glora_": "GLoRA",
    "on_input": "IA3",
    "bundle_emb": "learned words inside",
    "lora_B.bias": "biases",
    "diff": "differences of whole weights",
}
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./ +()-]+\.safetensors)")
_FORMAT = "in the format of diffusers, peft or kohya"
_METADATA = "lora_adapter_metadata"
"""The key in a file's header under which diffusers saves peft's configuration."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The change of one layer, scaling * up @ down. ``layer`` is its name in the file.

    ``down`` [rank, inputs, ...], ``up`` [outputs, rank, ...], ``magnitude`` of DoRA: the length of each output's
    weights.
    """

    layer: str
    down: Tensor
    up: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def model(self) -> str | None:
        """Which of MODELS_WITH_LORA the layer is in; None if its name does not say."""
        before = self.layer.split(".")[0]
        if before in MODELS_WITH_LORA:
            return before
        return next((model for model, starts in KOHYA.items() if any(before.startswith(f"{s}_") for s in starts)), None)


def find_file(text: str) -> tuple[Path, float]:
    """Return the file and the scale of ``FILE[:SCALE]``; FILE may be on the hub, as OWNER/NAME/FILE.safetensors.

    Raises ArgumentError if there is no such file or the scale is not finite.
    """
    name, colon, number = text.rpartition(":")
    scale = 1.0
    if colon:
        try:
            scale = float(number)
        except ValueError:
            name = text
    else:
        name = text
    if not math.isfinite(scale):
        raise _refused(name, "a finite scale", number, "pass one such as 0.8")
    file = Path(name)
    if file.is_file():
        return file, scale
    if hub := _HUB_FILE.fullmatch(name):
        return _download(hub[1], hub[2]), scale
    found = "a folder" if file.exists() else "no file"
    raise _refused(
        name, "a safetensors file, or one on the hub as OWNER/NAME/FILE.safetensors", found, "check the path"
    )


def _download(repository: str, name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except Exception as error:  # network and hub errors share no base class
        found = f"no such file, no connection or no access ({type(error).__name__})"
        raise _refused(
            f"{repository}/{name}", "a file on the hub", found, "check name and network, or pass a local file"
        ) from None


def read_pairs(file: Path) -> tuple[Pair, ...]:
    """Return the pairs of a safetensors file. Raises ArgumentError for everything else, and for what is not finite."""
    if file.suffix != ".safetensors":
        found = f"a {file.suffix or 'nameless'} file, which may be a pickle"
        raise _refused(file, "a safetensors file", found, "convert it once with safetensors.torch.save_file")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refused(
            file, "a whole safetensors file", f"one that cannot be read ({error})", "copy it again"
        ) from None
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, part = _split(key)
        if part is None:
            raise _unknown(file, key, len(tensors))
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise _refused(file, "finite numbers", f"NaN, infinity or integers in {key:.120}", "train or copy it again")
        if part in layers.setdefault(layer, {}):
            raise _refused(file, "one pair of matrices per layer", f"two for {layer:.120}", "train it again")
        layers[layer][part] = tensor
    if not layers:
        raise _refused(file, f"a LoRA {_FORMAT}", "no tensors", "pass another file")
    settings = _settings(file, metadata)
    return tuple(_pair(file, layer, parts, settings) for layer, parts in sorted(layers.items()))


def _split(key: str) -> tuple[str, str | None]:
    """Return the layer and the part that a key names; None for a part that LoRAs do not have."""
    for end, part in _PARTS.items():
        for mark in (".", "_") if end.startswith("lora.") else (".",):
            if key.endswith(f"{mark}{end}"):
                return key.removesuffix(f"{mark}{end}"), part
    return key, None


def _pair(file: Path, layer: str, parts: dict[str, Tensor], settings: Mapping[str, Any]) -> Pair:
    if not {"down", "up"} <= parts.keys():
        found = f"only {' and '.join(sorted(parts))} of {layer:.120}"
        raise _refused(file, "two matrices per layer", found, "copy or train it again")
    down, up, magnitude = parts["down"], parts["up"], parts.get("magnitude")
    rank = down.shape[0] if down.ndim else 0
    if min(down.ndim, up.ndim) < 2 or not rank or up.shape[1] != rank:
        found = f"{list(up.shape)} and {list(down.shape)} for {layer:.120}"
        raise _refused(file, "two matrices of one rank per layer", found, "train it again")
    if magnitude is not None and magnitude.numel() != magnitude.shape[1 if magnitude.shape[:1] == (1,) else 0]:
        raise _refused(file, "one magnitude per output", f"{list(magnitude.shape)} for {layer:.120}", "train it again")
    if "alpha" in parts:
        scaling = float(parts["alpha"].flatten()[0]) / rank if parts["alpha"].numel() == 1 else math.nan
    else:
        scaling = _scaling(layer, rank, settings)
    if not math.isfinite(scaling):
        raise _refused(file, "one finite alpha per layer", f"another for {layer:.120}", "train it again")
    return Pair(layer, down, up, scaling, magnitude)


def _settings(file: Path, metadata: dict[str, str]) -> Mapping[str, Any]:
    """Return peft's configuration where diffusers saved one, keys by model: ``unet.lora_alpha``."""
    if _METADATA not in metadata:
        return {}
    try:
        found = json.loads(metadata[_METADATA])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused(file, f"JSON in {_METADATA}", "something else", "save it again with diffusers")
    return found


def _scaling(layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    """Return what peft multiplies a pair by: alpha / rank or, for rsLoRA, / sqrt(rank); 1 where nothing is said."""
    model, _, name = layer.partition(".")
    alpha = settings.get(f"{model}.lora_alpha", rank if not settings.get(f"{model}.use_rslora") else math.nan)
    patterns = settings.get(f"{model}.alpha_pattern") or {}
    for ending, value in patterns.items() if isinstance(patterns, dict) else ():
        if f".{name}".endswith(f".{ending.removeprefix('^')}"):
            alpha = value
            break
    if not isinstance(alpha, int | float):
        return math.nan
    return alpha / (math.sqrt(rank) if settings.get(f"{model}.use_rslora") else rank)


def _unknown(file: Path, key: str, count: int) -> ArgumentError:
    for part, kind in _OTHER_KINDS.items():
        if part in key.rpartition(".")[2] or f".{part}" in f".{key}":
            fix = "merge it into the checkpoint with its own tool, and export that"
            return _refused(file, f"a LoRA, LoCon or DoRA {_FORMAT}", f"{kind} ({key:.120})", fix)
    found = f"{count} tensors, among them {key:.120}"
    return _refused(file, f"pairs of matrices of a LoRA {_FORMAT}", found, "pass another file")


def _refused(file: Path | str, expected: str, found: str, fix: str) -> ArgumentError:
    return ArgumentError(f"lora {file}", expected=expected, found=found, fix=fix)
