"""A checkpoint folder as diffusers saves it: configurations, weights and tokenizers, checked before they are read.

Weights are safetensors only: a pickle can run code, so a folder that has nothing else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from koala_bundle.errors import CheckpointError
from koala_bundle.files import file_entry, relative
from koala_export.configs import Config
from koala_export.learned_words import add_tokens, add_vectors, count_tokens, digest_lines, read_words
from koala_export.presets import Preset
from koala_export.tokenizer import tokenizer_json

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
CONFIG_FILES = {
    "model_index": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    **{name: f"{name}/config.json" for name in MODELS},
}
TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_PASS_A_FOLDER = "pass a folder saved by diffusers' save_pretrained"


class Checkpoint(Protocol):
    """The interface of a source to the exporter."""

    configs: dict[str, Config]
    preset: Preset | None
    """The preset whose model card gives the defaults; None for a folder, whose own files give them."""

    def digest(self) -> str:
        """SHA-256 over everything that decides what is exported."""

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Return one of MODELS in evaluation mode on the CPU."""

    def tokenizer(self, name: str) -> bytes:
        """Return tokenizer.json for ``tokenizer`` or ``tokenizer_2``."""


def model_class(name: str) -> Any:
    """The diffusers or transformers class of one of MODELS (imported on use: each import takes seconds)."""
    if name in ("unet", "vae"):
        import diffusers

        return diffusers.UNet2DConditionModel if name == "unet" else diffusers.AutoencoderKL
    import transformers

    return transformers.CLIPTextModel if name == "text_encoder" else transformers.CLIPTextModelWithProjection


def prefix_text_encoder(folder: Path) -> None:
    """Give the saved weights of a CLIPTextModel the prefix of published checkpoints, which transformers 4 needs.

    transformers 5 saves them without it, and reads both.
    """
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    held = load_file(path)  # copied below: Windows does not write a file that is mapped
    weights = {f"text_model.{name.removeprefix('text_model.')}": weight.clone() for name, weight in held.items()}
    del held
    save_file(weights, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes it unreadable to other users


class FolderCheckpoint:
    """A local folder. ``precision`` decides which weight files are preferred where both exist.

    ``embeddings``: files with learned words, which become part of tokenizers and text encoders.
    """

    def __init__(
        self, folder: Path, precision: str, preset: Preset | None = None, embeddings: Sequence[Path] = ()
    ) -> None:
        self.folder, self.preset = folder, preset
        self.configs: dict[str, Config] = {name: _read_json(folder / file) for name, file in CONFIG_FILES.items()}
        variants = ("fp16", None) if precision == "fp16" else (None, "fp16")
        self._variants: dict[str, str | None] = {}
        self._weights: dict[str, list[Path]] = {}
        for model in MODELS:
            self._variants[model], self._weights[model] = _find_weights(folder / model, variants)
        for path in self._weight_files():
            _check_safetensors(path)
        # 512: transformers' default of CLIPTextConfig.
        widths = {name: int(self.configs[name].get("hidden_size", 512)) for name in ("text_encoder", "text_encoder_2")}
        self.words = read_words(embeddings, widths)
        for encoder in {word.encoder for word in self.words}:
            rows = count_tokens(self.tokenizer(TOKENIZER_OF[encoder]))
            self.configs[encoder] = {**self.configs[encoder], "vocab_size": rows}

    def digest(self) -> str:
        """SHA-256 over the names and digests of every file that is read."""
        total = hashlib.sha256()
        tokenizers = (path for name in ("tokenizer", "tokenizer_2") for path in (self.folder / name).glob("*.*"))
        configs = (self.folder / file for file in CONFIG_FILES.values())
        for path in sorted({*configs, *tokenizers, *self._weight_files()}):
            total.update(f"{relative(self.folder, path)} {file_entry(path).sha256}\n".encode())
        for line in digest_lines(self.words):
            total.update(f"{line}\n".encode())
        return total.hexdigest()

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Load one model with the libraries' own loader. Raises CheckpointError unless every weight is there."""
        try:
            module, report = model_class(model).from_pretrained(
                self.folder / model,
                variant=self._variants[model],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=dtype,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _weights_error(self.folder / model, f"weights that do not load ({_first_sentence(error)})") from error
        wrong = [*report.get("missing_keys", ()), *(key for key, *_ in report.get("mismatched_keys", ()))]
        if wrong:
            raise _weights_error(
                self.folder / model, f"{len(wrong)} tensors missing or of another shape, among them {min(wrong)}"
            )
        if words := [word for word in self.words if word.encoder == model]:
            add_vectors(module, words, self.configs[model]["vocab_size"])
        return module.eval()  # type: ignore[no-any-return]

    def tokenizer(self, name: str) -> bytes:
        """Convert ``vocab.json`` and ``merges.txt`` (or read ``tokenizer.json``)."""
        sequence_length = int(self.configs["text_encoder"].get("max_position_embeddings", 77))
        converted = tokenizer_json(self.folder / name, sequence_length)
        words = [word for word in self.words if TOKENIZER_OF[word.encoder] == name]
        return add_tokens(converted, words) if words else converted

    def weight_names(self, model: str) -> set[str]:
        """Return what the weights of one of MODELS are called in its files."""
        names = set[str]()
        for path in self._weights[model]:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    names |= {*file.keys()}
        return names

    def _weight_files(self) -> Iterator[Path]:
        for paths in self._weights.values():
            yield from paths


def _find_weights(folder: Path, variants: tuple[str | None, ...]) -> tuple[str | None, list[Path]]:
    stem = "diffusion_pytorch_model" if folder.name in ("unet", "vae") else "model"
    for variant in variants:
        suffix = f".{variant}" if variant else ""
        single = folder / f"{stem}{suffix}.safetensors"
        if single.is_file():
            return variant, [single]
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if index.is_file():
            shards = sorted(set(_read_json(index)["weight_map"].values()))
            missing = [name for name in shards if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(
                    str(folder / missing[0]),
                    expected=f"a shard that {index.name} lists",
                    found="no file",
                    fix="download the checkpoint again",
                )
            return variant, [index, *(folder / name for name in shards)]
    pickles = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern))
    raise CheckpointError(
        str(folder),
        expected=f"{stem}.safetensors or {stem}.fp16.safetensors",
        found=f"only {pickles[0]}, a pickle, which can run code" if pickles else "no weights",
        fix="save the checkpoint again with save_pretrained(..., safe_serialization=True)"
        if pickles
        else _PASS_A_FOLDER,
    )


def _check_safetensors(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise CheckpointError(
            str(path),
            expected="a whole safetensors file",
            found=f"{path.stat().st_size:,} bytes that are not one ({error})",
            fix="download or copy the file again",
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            str(path),
            expected="a file of a diffusers checkpoint",
            found="no file",
            fix=_PASS_A_FOLDER,
        )
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            str(path), expected="JSON", found=f"an error at {error}", fix="download or copy the file again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(str(path), expected="a JSON object", found=type(data).__name__, fix=_PASS_A_FOLDER)
    return data


def _weights_error(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(folder),
        expected="weights for every parameter of its config.json",
        found=found,
        fix="download the checkpoint again, config.json and weights together",
    )


def _first_sentence(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return " ".join(line.split(". ")[0].split()).rstrip(".")
