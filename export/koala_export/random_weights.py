"""A checkpoint that needs no download: a preset's shape with random weights.

For dry runs and latency, which depends on the shape alone. The tokenizer is CLIP's alphabet (every byte, no merges)
with the start and end tokens at their real ids; pictures are noise.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from koala_export.checkpoint import prefix_text_encoder
from koala_export.configs import CONFIG_FILES, MODELS, Config
from koala_export.libraries import make_model
from koala_export.lora import Lora
from koala_export.presets import Preset, configs
from koala_export.tokenizer import with_static_length

SEED = 0


class RandomCheckpoint:
    """A preset initialised by the libraries themselves, from a fixed seed."""

    def __init__(self, preset: Preset) -> None:
        self.configs: dict[str, Config] = dict(configs(preset))
        self.preset: Preset | None = preset
        self.loras: Sequence[Lora] = ()

    def digest(self) -> str:
        """SHA-256 over the shape, the seed and torch's version, which decides the numbers drawn."""
        shape = json.dumps([self.configs, SEED, torch.__version__], sort_keys=True)
        return hashlib.sha256(shape.encode()).hexdigest()

    def model_digest(self, model: str) -> str:
        """SHA-256 as ``digest``, of one of MODELS."""
        shape = json.dumps([model, self.configs[model], SEED, torch.__version__], sort_keys=True)
        return hashlib.sha256(shape.encode()).hexdigest()

    def check(self) -> None:
        """Presets can be built."""

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Initialise one model directly in ``dtype``."""
        before = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + zlib.crc32(model.encode()))
            torch.set_default_dtype(dtype)
            try:
                module = make_model(model, self.configs[model])
            finally:
                torch.set_default_dtype(before)
        return module.to(dtype).eval()  # type: ignore[no-any-return]

    def tokenizer(self, name: str) -> bytes:
        """Return a byte-level tokenizer with the special tokens of the real one."""
        encoder: Config = self.configs["text_encoder_2" if name == "tokenizer_2" else "text_encoder"]
        return with_static_length(self._tokenizer(name), int(encoder.get("max_position_embeddings", 77)))

    def save(self, folder: Path, precision: str) -> None:
        """Write a checkpoint folder that has these weights when read in ``precision`` ("fp16" or "fp32").

        As the KOALA repositories hold theirs: fp16 variants, and one plain VAE.
        """
        dtype = torch.float16 if precision == "fp16" else torch.float32
        for name in MODELS:
            model: Any = self.load(name, dtype)
            if name == "vae":
                model = model.float()
            model.save_pretrained(folder / name, variant="fp16" if precision == "fp16" and name != "vae" else None)
        prefix_text_encoder(folder / "text_encoder")
        for name in ("model_index", "scheduler"):
            path = folder / CONFIG_FILES[name]
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.configs[name], indent=2), encoding="utf-8")
        for name in ("tokenizer", "tokenizer_2"):
            tokenizer, place = self._tokenizer(name), folder / name
            place.mkdir()
            (place / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), ensure_ascii=False), encoding="utf-8")
            (place / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
            config = {**tokenizer.special_tokens_map, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
            (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

    def _tokenizer(self, name: str) -> Any:
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import CLIPTokenizer

        encoder: Config = self.configs["text_encoder_2" if name == "tokenizer_2" else "text_encoder"]
        size = int(encoder["vocab_size"])
        alphabet = sorted(ByteLevel.alphabet(), key=lambda character: (not character.isascii(), character))
        tokens = [*alphabet, *(character + "</w>" for character in alphabet)]
        vocab = {token: index for index, token in enumerate(tokens)}
        vocab |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
        pad = "!" if name == "tokenizer_2" else "<|endoftext|>"
        return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad)
