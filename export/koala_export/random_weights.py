"""A checkpoint that needs no download: a preset's shape with random weights.

For dry runs and latency, which depends on the shape alone. The tokenizer is CLIP's alphabet (every byte, no merges)
with the start and end tokens at their real ids; pictures are noise.
"""

from __future__ import annotations

import hashlib
import json
import zlib

import torch

from koala_export.checkpoint import model_class
from koala_export.presets import Preset, configs
from koala_export.tokenizer import with_static_length
from koala_runtime.contract.configs import Config

SEED = 0


class RandomCheckpoint:
    """The libraries' own initialisation, from a fixed seed."""

    def __init__(self, preset: Preset) -> None:
        self.configs: dict[str, Config] = dict(configs(preset))
        self.preset: Preset | None = preset

    def digest(self) -> str:
        """SHA-256 over the shape, the seed and torch's version, which decides the numbers drawn."""
        shape = json.dumps([self.configs, SEED, torch.__version__], sort_keys=True)
        return hashlib.sha256(shape.encode()).hexdigest()

    def load(self, model: str, dtype: torch.dtype) -> torch.nn.Module:
        """Initialise one model directly in ``dtype``."""
        before = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + zlib.crc32(model.encode()))
            torch.set_default_dtype(dtype)
            try:
                if model in ("unet", "vae"):
                    module = model_class(model).from_config(self.configs[model])
                else:
                    from transformers import CLIPTextConfig

                    module = model_class(model)(CLIPTextConfig(**self.configs[model]))
            finally:
                torch.set_default_dtype(before)
        return module.to(dtype).eval()  # type: ignore[no-any-return]

    def tokenizer(self, name: str) -> bytes:
        """Return a byte-level tokenizer with the special tokens of the real one."""
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import CLIPTokenizer

        encoder: Config = self.configs["text_encoder_2" if name == "tokenizer_2" else "text_encoder"]
        size = int(encoder["vocab_size"])
        alphabet = sorted(ByteLevel.alphabet(), key=lambda character: (not character.isascii(), character))
        tokens = [*alphabet, *(character + "</w>" for character in alphabet)]
        vocab = {token: index for index, token in enumerate(tokens)}
        vocab |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
        pad = "!" if name == "tokenizer_2" else "<|endoftext|>"
        tokenizer = CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad)
        return with_static_length(tokenizer, int(encoder.get("max_position_embeddings", 77)))
