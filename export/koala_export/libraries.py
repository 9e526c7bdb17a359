"""The configurations of a checkpoint folder as diffusers and transformers read them: defaults filled in, keys dropped.

Files can say more than a dict shows: ``_use_default_values``, a configuration inside another, files by version. So the
libraries read them, and what they make of them is what the specification is taken from.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from koala_bundle.errors import CheckpointError
from koala_bundle.scheduler_keys import KEYS
from koala_export.configs import CLASSES, CONFIG_FILES, MODELS, Config, read_classes, read_scheduler
from koala_export.fields import SAVE_AGAIN, Fields, misfit, shown
from koala_export.weights import OF_DIFFUSERS

T = TypeVar("T")
MOST_LAYERS = 1000
"""Of one kind in a model; libraries build whatever number a configuration has, until there is no memory left."""
_LAYERS = (
    *("num_hidden_layers", "layers_per_block"),
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
    *("num_encoder_blocks", "num_decoder_blocks"),
)


def model_class(name: str, class_name: str | None = None) -> Any:
    """The class of one of MODELS, the first of its CLASSES for None (imported on use: each import takes seconds)."""
    library, classes = CLASSES[name]
    return getattr(importlib.import_module(library), class_name or classes[0])


def read_configs(root: Path, raw: dict[str, Config]) -> dict[str, Config]:
    """Return the configuration of every component, from the parsed JSON files ``raw`` of the folder ``root``.

    Raises CheckpointError, with the file and key where they are known, for what a library refuses.
    """
    for name in MODELS:
        _refuse_other_weights(root, name, raw[name])
    return {
        "model_index": _of_diffusers(_pipeline_class(), "model_index", raw) | _classes(raw["model_index"]),
        "scheduler": _scheduler(raw),
        **{name: _model(root, name, raw) for name in MODELS},
    }


def check_models(configs: dict[str, Config]) -> None:
    """Build every model without memory. Raises CheckpointError naming the file of a configuration that builds none."""
    import torch

    classes = read_classes(configs["model_index"])
    with torch.device("meta"):
        for name in MODELS:
            cls = model_class(name, classes[name])
            build = partial(make_model, name, configs[name], classes[name])
            _ask(name, dict(configs[name]), build, _hints(cls) if name in OF_DIFFUSERS else {})


def make_model(name: str, config: Config, class_name: str | None = None) -> Any:
    """Return one of MODELS with the libraries' own initial weights, on torch's current device."""
    cls = model_class(name, class_name)
    if name in OF_DIFFUSERS:
        return cls(**config)
    from transformers import CLIPTextConfig

    return cls(CLIPTextConfig(**config))


def _pipeline_class() -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline


def _classes(index: Config) -> dict[str, Any]:
    """Return what diffusers' pipelines take from model_index.json beside their own arguments."""
    return {name: value for name, value in index.items() if name == "_class_name" or isinstance(value, list)}


def _model(root: Path, name: str, raw: dict[str, Config]) -> Config:
    if name in OF_DIFFUSERS:
        return _of_diffusers(model_class(name, read_classes(raw["model_index"])[name]), name, raw)
    from transformers import CLIPTextConfig

    found = _ask(name, raw[name], lambda: CLIPTextConfig.from_pretrained(root / name, local_files_only=True), {})
    return dict(found.to_dict())


def _scheduler(raw: dict[str, Config]) -> Config:
    """Return the keys that the class of model_index.json is given, and those that diffusers keeps for other classes."""
    import diffusers

    name = read_classes(raw["model_index"])["scheduler"]
    cls = getattr(diffusers, name)
    config, _, hidden = _ask("scheduler", raw["scheduler"], lambda: cls.extract_init_dict(dict(raw["scheduler"])), {})
    defaults = inspect.signature(cls.__init__).parameters
    fields = Fields(CONFIG_FILES["scheduler"], config)
    for key in config.keys() - KEYS[name].keys():  # an argument of a newer diffusers
        fields.require(key, defaults[key].default, why="diffusers' default", fix="draw this checkpoint with diffusers")
    read_scheduler(name, config)
    scheduler = _ask("scheduler", config, lambda: cls(**config), _hints(cls))
    tables = (getattr(scheduler, name, None) for name in ("alphas_cumprod", "sigmas"))
    if not all(table.isfinite().all() for table in tables if table is not None):
        raise fields.error("beta_start, beta_end", "betas from 0 to 1, whose noise levels are finite", "others")
    return {**hidden, **config}


def _of_diffusers(cls: Any, name: str, raw: dict[str, Config]) -> dict[str, Any]:
    found = _ask(name, raw[name], lambda: cls.extract_init_dict(dict(raw[name])), {})
    return dict(found[0])


def read_vae_config(file: Path, class_name: str, raw: Config) -> Config:
    """Return the configuration of a VAE in a folder of its own, ``raw`` as its class reads it. Raises CheckpointError.

    The model is built without memory, so that a configuration that builds none is refused by key.
    """
    import torch

    _refuse_changed_weights(Fields(str(file), raw), raw)
    cls = model_class("vae", class_name)
    config = _of_diffusers(cls, str(file), {str(file): raw})
    with torch.device("meta"):
        _ask(str(file), config, partial(cls, **config), _hints(cls))
    return config


def _refuse_other_weights(root: Path, name: str, config: Config) -> None:
    """Refuse what makes a library load other weights than those of the folder, or change them."""
    fields = Fields(CONFIG_FILES[name], config)
    _refuse_changed_weights(fields, config)
    if name not in OF_DIFFUSERS:
        fields.require("transformers_weights", None, fix=SAVE_AGAIN)
        for key in ("dtype", "torch_dtype"):
            if (value := config.get(key)) is not None and not _is_float(value):
                raise fields.error(key, "a type of floating-point numbers, such as float32", shown(value), SAVE_AGAIN)
        adapter = root / name / "adapter_config.json"
        if adapter.exists():
            raise CheckpointError(
                str(adapter),
                expected="no adapter beside the weights",
                found="one",
                fix="merge it into the weights (PEFT's merge_and_unload) and save the checkpoint, or delete it",
            )


def _refuse_changed_weights(fields: Fields, config: Config) -> None:
    for key in _LAYERS:
        if any(type(count) is int and count > MOST_LAYERS for count in _flat(config.get(key))):
            raise fields.error(key, f"at most {MOST_LAYERS} layers", shown(config[key]), SAVE_AGAIN)
    if config.get("quantization_config") is not None:
        kind = config["quantization_config"]
        method = kind.get("quant_method") if isinstance(kind, dict) else kind
        fix = "save the checkpoint again without quantisation, or pass the original one"
        raise fields.error("quantization_config", "none: weights are compiled as they were trained", str(method), fix)


def _flat(value: object) -> list[object]:
    return [each for part in value for each in _flat(part)] if isinstance(value, list) else [value]


def _is_float(dtype: object) -> bool:
    import torch

    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    return isinstance(found, torch.dtype) and found.is_floating_point


def _hints(cls: Any) -> dict[str, Any]:
    # register_to_config wraps __init__ and keeps the original.
    return typing.get_type_hints(inspect.unwrap(cls.__init__))


def _ask(name: str, values: Config, read: Callable[[], T], hints: dict[str, Any]) -> T:
    """Return what a library makes of a configuration; what it refuses is told by key if its annotations allow that."""
    try:
        return read()
    except Exception as error:  # libraries raise many kinds for a file that is not right
        file = CONFIG_FILES.get(name, name)
        if wrong := misfit(hints, values):
            key, expected, found = wrong
            raise Fields(file, values).error(key, expected, found) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        named = re.search(r"for field '(\w+)'", said)  # huggingface_hub's words for a value of another type
        raise CheckpointError(
            f"{file}: {named[1]}" if named else file,
            expected="a configuration that the library reads",
            found=f"a refusal ({said.rstrip('.')})",
            fix=SAVE_AGAIN,
        ) from error
