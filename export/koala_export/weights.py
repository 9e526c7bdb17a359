"""Which weight files of a checkpoint folder the libraries load: one variant for all models, as diffusers has it.

diffusers' models look for an index of shards before a single file, transformers' for a single file first. Only
safetensors are looked for: a pickle can run code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from koala_bundle.errors import CheckpointError
from koala_export.configs import MODELS
from koala_export.fields import Fields, read_json

OF_DIFFUSERS = ("unet", "vae")
_AGAIN = "download the checkpoint again"


@dataclass(frozen=True)
class Weights:
    """The files of one model, its index first where there is one; ``variant`` as from_pretrained takes it."""

    variant: str | None
    files: tuple[Path, ...]


def choose_weights(root: Path, precision: str) -> dict[str, Weights]:
    """Return the files of every model in the variant that fits ``precision`` best. Raises CheckpointError."""
    preferred = _preferred(precision)
    others = sorted({name for model in MODELS for name in _variants(root / model, model)} - {*preferred})
    candidates = [*preferred, *(others if len(others) == 1 else ())]
    for variant in candidates:
        found = {model: find_weights(root / model, model, variant) for model in MODELS}
        if all(found.values()):
            return {model: weights for model, weights in found.items() if weights}
    raise _no_weights(root, candidates, others)


def choose_own_weights(folder: Path, model: str, precision: str) -> Weights:
    """Return the files of a model in a folder of its own, as ``choose_weights`` does. Raises CheckpointError."""
    for variant in _preferred(precision):
        if weights := find_weights(folder, model, variant):
            return weights
    raise CheckpointError(
        str(folder),
        expected=f"{_stem(model)}.safetensors or {_stem(model)}.fp16.safetensors",
        found="no weights",
        fix="pass a folder saved by diffusers' save_pretrained",
    )


def _preferred(precision: str) -> tuple[str | None, ...]:
    """Return the variants, the one that fits ``precision`` best first."""
    return ("fp16", None, "bf16") if precision == "fp16" else (None, "fp16", "bf16")


def find_weights(folder: Path, model: str, variant: str | None) -> Weights | None:
    """Return what from_pretrained loads for one model of a pipeline that is loaded with ``variant``."""
    if variant and not any(_second_part(path).startswith(variant) for path in _files(folder)):
        variant = None  # as diffusers: models without files of the variant load their plain ones
    stem, dot = _stem(model), f".{variant}" if variant else ""
    single = folder / f"{stem}{dot}.safetensors"
    index = folder / f"{stem}.safetensors.index{dot}.json"
    older = [folder / f"{stem}.safetensors{dot}.index.json"] if variant and model in OF_DIFFUSERS else []
    for path in [index, *older, single] if model in OF_DIFFUSERS else [single, index]:
        if path.is_file():
            return Weights(variant, (path,) if path == single else (path, *_shards(path)))
    return None


def _shards(index: Path) -> list[Path]:
    fields = Fields(str(index), read_json(index, _AGAIN))
    if not isinstance(fields.raw("metadata"), dict):
        raise fields.error("metadata", "an object", type(fields.raw("metadata")).__name__)
    names = fields.raw("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise fields.error("weight_map", "the file of each tensor", type(names).__name__)
    shards = []
    for name in sorted({*names.values()}):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            what = f"a shard that {index.name} lists"
            raise CheckpointError(str(path), expected=what, found="no file", fix=_AGAIN)
        shards.append(path)
    return shards


def _no_weights(root: Path, candidates: list[str | None], others: list[str]) -> CheckpointError:
    """Return the error of the first model that has no weights in any variant, or else of the variants."""
    for model in MODELS:
        folder, stem = root / model, _stem(model)
        if any(find_weights(folder, model, variant) for variant in candidates):
            continue
        own = sorted(set(_variants(folder, model)) & {*others})
        pickles = sorted(path.name for path in _files(folder) if path.suffix in (".bin", ".ckpt", ".pt"))
        found = f"the variants {' and '.join(own)}, which one is not said" if own else "no weights"
        fix = "pass a folder saved by diffusers' save_pretrained"
        if own:
            fix = f"rename the files of the variant that you want to {stem}.safetensors"
        elif pickles:
            found = f"only {pickles[0]}, a pickle, which can run code"
            fix = "save the checkpoint again with save_pretrained(..., safe_serialization=True)"
        return CheckpointError(
            str(folder), expected=f"{stem}.safetensors or {stem}.fp16.safetensors", found=found, fix=fix
        )
    return CheckpointError(
        str(root),
        expected="weights of one variant for all models",
        found="none that all of them have",
        fix="save the checkpoint again with save_pretrained",
    )


def _stem(model: str) -> str:
    return "diffusion_pytorch_model" if model in OF_DIFFUSERS else "model"


def _variants(folder: Path, model: str) -> list[str]:
    pattern = re.compile(rf"{_stem(model)}\.([^.]+?)(-\d{{5}}-of-\d{{5}})?\.safetensors")
    found = (pattern.fullmatch(path.name) for path in _files(folder))
    return [match[1] for match in found if match]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _second_part(path: Path) -> str:
    return path.name.split(".")[1] if "." in path.name else ""
