"""A checkpoint folder as diffusers saves it: configurations, weights and tokenizers, checked before they are read.

Weights are safetensors only: a pickle can run code, so a folder that has nothing else is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from koala_bundle.errors import CheckpointError, first_line
from koala_bundle.files import file_entry, relative
from koala_export.configs import CLASSES, CONFIG_FILES, Config, read_classes
from koala_export.fields import read_json
from koala_export.learned_words import LearnedWord, add_tokens, add_vectors, count_tokens, digest_lines, read_words
from koala_export.libraries import check_models, model_class, read_configs
from koala_export.lora import Lora, check_fit, fuse, touched
from koala_export.presets import Preset
from koala_export.tokenizer import tokenizer_json
from koala_export.weights import Weights, choose_weights

TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_PASS_A_FOLDER = "pass a folder saved by diffusers' save_pretrained"


class Checkpoint(Protocol):
    """The interface of a source to the exporter."""

    configs: dict[str, Config]
    loras: Sequence[Lora]
    preset: Preset | None
    """The preset whose model card gives the defaults; None for a folder, whose own files give them."""

    def digest(self) -> str:
        """SHA-256 over everything that decides what is exported."""

    def model_digest(self, model: str) -> str:
        """SHA-256 over everything that decides what ``load`` returns for one of MODELS, but for LoRAs."""

    def check(self) -> None:
        """Raise CheckpointError unless every model can be built."""

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Return one of MODELS in evaluation mode on the CPU."""

    def tokenizer(self, name: str) -> bytes:
        """Return tokenizer.json for ``tokenizer`` or ``tokenizer_2``."""


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
    """A local folder. ``precision`` decides which variant is preferred where there are several.

    ``configs`` are as the libraries read them, ``classes`` the class that model_index.json names for each folder.
    ``embeddings``: files with learned words, which become part of tokenizers and text encoders. ``loras`` are added to
    the weights that ``load`` returns, and are no part of ``digest``.
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        preset: Preset | None = None,
        embeddings: Sequence[Path] = (),
        loras: Sequence[Lora] = (),
    ) -> None:
        self.folder, self.preset, self.loras = folder.absolute(), preset, loras
        self._digests: dict[Path, str] = {}  # of files that were read
        raw: dict[str, Config] = {name: read_json(folder / file, _PASS_A_FOLDER) for name, file in CONFIG_FILES.items()}
        self.classes = read_classes(raw["model_index"])
        self.configs: dict[str, Config] = read_configs(self.folder, raw)
        self.weights = choose_weights(self.folder, precision)
        for path in self._weight_files():
            check_safetensors(path)
        # 512: transformers' default of CLIPTextConfig.
        widths = {name: int(self.configs[name].get("hidden_size", 512)) for name in ("text_encoder", "text_encoder_2")}
        self.words = read_words(embeddings, widths)
        for encoder in {word.encoder for word in self.words}:
            rows = count_tokens(self.tokenizer(TOKENIZER_OF[encoder]))
            self.configs[encoder] = {**self.configs[encoder], "vocab_size": rows}

    def digest(self) -> str:
        """SHA-256 over the names and digests of every file that is read, and of every other that a library may read."""
        beside = (path for name in CLASSES for path in (self.folder / name).glob("*") if _is_text(path))
        return self._digest({self.folder / CONFIG_FILES["model_index"], *beside, *self._weight_files()}, self.words)

    def model_digest(self, model: str) -> str:
        """SHA-256 as ``digest``, over the files of one of MODELS and its learned words."""
        beside = (path for path in (self.folder / model).glob("*") if _is_text(path))
        words = [word for word in self.words if word.encoder == model]
        return self._digest({*beside, *self.weights[model].files}, words)

    def _digest(self, files: Iterable[Path], words: Sequence[LearnedWord]) -> str:
        total = hashlib.sha256()
        for path in sorted(files):
            if path not in self._digests:
                self._digests[path] = file_entry(path).sha256
            total.update(f"{relative(self.folder, path)} {self._digests[path]}\n".encode())
        for line in digest_lines(words):
            total.update(f"{line}\n".encode())
        return total.hexdigest()

    def check(self) -> None:
        """Raise CheckpointError unless every model can be built, before the first is loaded."""
        check_models(self.configs)
        for lora in self.loras:
            check_fit(lora, self.configs)

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Load one model with the libraries' own loader, and add LoRAs.

        Raises CheckpointError unless every weight is there.
        """
        if loras := touched(self.loras, model):  # added in float32 and rounded once
            return fuse(self._load(model, torch.float32), model, loras, self.configs[model], dtype)
        return self._load(model, dtype)

    def _load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        folder = self.folder / model
        module = load_weights(model_class(model, self.classes[model]), folder, self.weights[model], dtype)
        if words := [word for word in self.words if word.encoder == model]:
            add_vectors(module, words, self.configs[model]["vocab_size"])
        check_finite(module, folder, dtype)
        return module.eval()

    def tokenizer(self, name: str) -> bytes:
        """Convert ``vocab.json`` and ``merges.txt`` (or read ``tokenizer.json``)."""
        encoder = "text_encoder_2" if name == TOKENIZER_OF["text_encoder_2"] else "text_encoder"
        config: Config = self.configs[encoder]
        converted = tokenizer_json(self.folder / name, config["max_position_embeddings"], config["vocab_size"])
        words = [word for word in self.words if word.encoder == encoder]
        return add_tokens(converted, words) if words else converted

    def weight_names(self, model: str) -> set[str]:
        """Return what the weights of one of MODELS are called in its files."""
        names = set[str]()
        for path in self.weights[model].files:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    names |= {*file.keys()}
        return names

    def _weight_files(self) -> Iterator[Path]:
        for weights in self.weights.values():
            yield from weights.files


def _is_text(path: Path) -> bool:
    return path.suffix in (".json", ".txt", ".jinja") and path.is_file()


def load_weights(cls: Any, folder: Path, weights: Weights, dtype: torch.dtype) -> torch.nn.Module:
    """Load a model of the class ``cls`` as its library does. Raises CheckpointError unless every weight is there."""
    try:
        module, report = cls.from_pretrained(
            folder,
            variant=weights.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
        )
    except Exception as error:  # libraries raise many kinds for files that are not right
        raise _weights_error(folder, f"weights that do not load ({_first_sentence(error)})") from error
    empty = (name for name, weight in module.state_dict().items() if weight.is_meta)  # of a shard that lacks some
    wrong = {*report.get("missing_keys", ()), *(key for key, *_ in report.get("mismatched_keys", ())), *empty}
    if wrong:
        raise _weights_error(folder, f"{len(wrong)} tensors missing or of another shape, among them {min(wrong)}")
    return module  # type: ignore[no-any-return]


def check_finite(module: Any, folder: Path, dtype: torch.dtype) -> None:
    """Raise CheckpointError naming a tensor that has values which are no numbers in ``dtype``."""
    for name, weight in module.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            half = "export with precision fp32, whose range is wider; if that finds the same, "
            raise CheckpointError(
                f"{folder}: {name}",
                expected=f"finite weights in {str(dtype).removeprefix('torch.')}",
                found=f"{count} of {weight.numel()} that are NaN or infinite",
                fix=f"{half if dtype == torch.float16 else ''}download the checkpoint again",
            )


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError for a file of safetensors that is cut short or damaged."""
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


def _weights_error(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(folder),
        expected="weights for every parameter of its config.json",
        found=found,
        fix="download the checkpoint again, config.json and weights together",
    )


def _first_sentence(error: Exception) -> str:
    return " ".join(first_line(error).split(". ")[0].split()).rstrip(".")
