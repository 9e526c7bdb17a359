"""Models that are not the checkpoint's own: another VAE in its place, or one beside it that decodes previews.

Each is a folder as diffusers' save_pretrained writes it, or a hub name; a folder with a ``vae`` folder in it will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from koala_bundle.errors import ArgumentError
from koala_bundle.files import file_entry
from koala_bundle.manifest import ModelOrigin, Origin
from koala_bundle.spec import Profile, VAESpec
from koala_export.checkpoint import Checkpoint, check_finite, check_safetensors, load_weights
from koala_export.configs import CLASSES, PREVIEW_DECODER, TINY, Config, read_vae
from koala_export.fields import read_json
from koala_export.libraries import model_class, read_vae_config
from koala_export.source import download, is_hub_name
from koala_export.weights import Weights, choose_own_weights

ROLES = ("vae", PREVIEW_DECODER)
_NAMES = {"vae": "a VAE", PREVIEW_DECODER: "a preview decoder"}
_CONFIG = "config.json"
_FILES = tuple(f"{folder}{name}" for folder in ("", "vae/") for name in (_CONFIG, "diffusion_pytorch_model*"))
_FIX = "pass a VAE that was trained for the checkpoint's latents"


@dataclass(frozen=True)
class OtherModel:
    """A VAE in a folder of its own; ``config`` as diffusers' class ``class_name`` reads it."""

    source: str
    folder: Path
    class_name: str
    config: Config
    weights: Weights

    @property
    def spec(self) -> VAESpec:
        """What it decodes. Raises CheckpointError naming the file and key."""
        return read_vae(self.config, self.class_name, str(self.folder / _CONFIG))

    @cached_property
    def origin(self) -> ModelOrigin:
        """What a manifest says of it; the digest is over the names and digests of the files that are read."""
        total = hashlib.sha256()
        for path in sorted({self.folder / _CONFIG, *self.weights.files}):
            total.update(f"{path.name} {file_entry(path).sha256}\n".encode())
        return ModelOrigin(self.source, total.hexdigest())

    def load(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return it in evaluation mode. Raises CheckpointError unless every weight is there and a number."""
        module = load_weights(model_class("vae", self.class_name), self.folder, self.weights, dtype)
        check_finite(module, self.folder, dtype)
        return module.eval()


def source_of(origin: ModelOrigin | None) -> str | None:
    """Return what was given for a model that is not the checkpoint's own."""
    return None if origin is None else origin.source


def open_others(sources: Mapping[str, str | None], precision: str) -> dict[str, OtherModel]:
    """Return the model of each role that has a source; ``precision`` prefers a variant of its weights.

    Raises ArgumentError where there is none, CheckpointError naming the file that is not as it should be.
    """
    return {role: _open(role, source, precision) for role, source in sources.items() if source is not None}


def open_recorded(origin: Origin, precision: str) -> dict[str, OtherModel]:
    """Return the models that a manifest names, by role. Raises ArgumentError unless their files are the same."""
    origins: dict[str, ModelOrigin] = {role: each for role in ROLES if (each := getattr(origin, role)) is not None}
    others = open_others({role: each.source for role, each in origins.items()}, precision)
    for role, model in others.items():
        if model.origin != origins[role]:
            raise ArgumentError(
                role,
                expected=f"in {model.source} the files that the bundle was made from",
                found="others",
                fix="bring them back, or export the bundle again",
            )
    return others


def _open(role: str, source: str, precision: str) -> OtherModel:
    folder = Path(source)
    if not folder.exists() and is_hub_name(source):
        folder = download(source, precision, _FILES)
    if not (folder / _CONFIG).is_file() and (folder / "vae" / _CONFIG).is_file():
        folder = folder / "vae"
    if not (folder / _CONFIG).is_file():
        raise ArgumentError(
            role,
            expected=f"the folder or hub name of {_NAMES[role]}",
            found=f"{source}, {f'where no {_CONFIG} is' if folder.is_dir() else 'which is no folder'}",
            fix="pass a folder saved by diffusers' save_pretrained",
        )
    raw, classes = read_json(folder / _CONFIG, _FIX), CLASSES["vae"][1]
    class_name = raw.get("_class_name")
    if class_name not in classes:
        raise ArgumentError(
            role,
            expected=f"{_NAMES[role]} of class {' or '.join(classes)}",
            found=f"{source}, of class {class_name!s:.80}",
            fix=_FIX,
        )
    config = read_vae_config(folder / _CONFIG, class_name, raw)
    weights = choose_own_weights(folder, "vae", precision)
    for path in weights.files:
        check_safetensors(path)
    return OtherModel(source, folder, class_name, config, weights)


class WithOthers:
    """A checkpoint with ``others`` by role: they take the place of its own models, or stand beside them."""

    def __init__(self, checkpoint: Checkpoint, others: Mapping[str, OtherModel]) -> None:
        self._checkpoint, self._others = checkpoint, others
        self.preset, self.loras = checkpoint.preset, checkpoint.loras
        index: dict[str, Any] = dict(checkpoint.configs["model_index"])
        configs = dict(checkpoint.configs)
        for role, other in others.items():
            configs[role], index[role] = other.config, ["diffusers", other.class_name]
        self.configs: dict[str, Config] = {**configs, "model_index": index}

    def digest(self) -> str:
        """That of the checkpoint; others have their own."""
        return self._checkpoint.digest()

    def model_digest(self, model: str) -> str:
        """Return a digest of what one model is made of."""
        return self._others[model].origin.digest if model in self._others else self._checkpoint.model_digest(model)

    def check(self) -> None:
        """Raise CheckpointError unless every model of the checkpoint can be built."""
        self._checkpoint.check()

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Return one of MODELS, or one of ROLES, in evaluation mode."""
        return self._others[model].load(dtype) if model in self._others else self._checkpoint.load(model, dtype)

    def tokenizer(self, name: str) -> bytes:
        """Return tokenizer.json of the checkpoint."""
        return self._checkpoint.tokenizer(name)


def with_others(checkpoint: Checkpoint, others: Mapping[str, OtherModel]) -> Checkpoint:
    """Return ``checkpoint`` with ``others`` by role. Raises ArgumentError for one that is for other latents."""
    if not others:
        return checkpoint
    index, config = checkpoint.configs["model_index"], checkpoint.configs["vae"]
    own = read_vae(config, index["vae"][1])
    for role, other in others.items():
        spec = other.spec
        for what, wanted, found in (
            ("latents of {} channels", own.latent_channels, spec.latent_channels),
            ("pictures of {} times the latents' height and width", own.scale_factor, spec.scale_factor),
        ):
            if wanted != found:
                raise ArgumentError(
                    role,
                    expected=f"{_NAMES[role]} for {what.format(wanted)}, as the checkpoint's own",
                    found=f"{other.source}, for {found}",
                    fix=_FIX,
                )
    return WithOthers(checkpoint, others)


def check_encoder(checkpoint: Checkpoint, profile: Profile) -> None:
    """Refuse to compile the encoder of a VAE that gives latents, but no distribution of them."""
    class_name = checkpoint.configs["model_index"]["vae"][1]
    if profile.encoder and class_name == TINY:
        raise ArgumentError(
            "encoder",
            expected="a VAE of class AutoencoderKL, whose encoder gives a distribution",
            found=class_name,
            fix="leave it out, or export with another VAE",
        )
