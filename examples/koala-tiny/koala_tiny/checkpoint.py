"""Writes a pipeline as the real repositories are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from koala_export.checkpoint import prefix_text_encoder
from koala_tiny.tokenizer import PADS, save_tokenizers


def save_checkpoint(folder: Path, merges: list[str], *, fp16: bool, force_zeros: bool = True, **models: Any) -> Path:
    """Write ``models`` (vae, text_encoder, text_encoder_2, unet, scheduler) and both tokenizers to ``folder``.

    With ``fp16`` only the half-precision files are written, as ``NAME.fp16.safetensors``.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        **models,
        tokenizer=None,
        tokenizer_2=None,
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    if fp16:
        pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    else:
        pipeline.save_pretrained(folder)
    prefix_text_encoder(folder / "text_encoder")
    # Written here: transformers 5 saves a tokenizer.json instead, which the real repositories do not have.
    save_tokenizers(folder, merges)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {name: ["transformers", "CLIPTokenizer"] for name in PADS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
