"""Trains the U-Net and both text encoders together, from nothing, on latents of drawn pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from koala_tiny.data import Latents
from koala_tiny.fit import Recipe, fit
from koala_tiny.models import SCHEDULER, make_text_encoders, make_unet
from koala_tiny.scenes import Request, words
from koala_tiny.tokenizer import PADS, merges_of_prompts, save_tokenizers, vocabulary

TOGETHER = Recipe("unet", steps=10_000, learning_rate=1e-3, warmup=300, ema=0.998)
ALONE = Recipe("unet-alone", steps=10_500, learning_rate=5e-4, warmup=300)
BATCH = 64
NO_PROMPT = 0.1  # share of pictures without text: zeros, what guidance is measured from
EMPTY_PROMPT = 0.02  # share with an empty prompt, which the encoders do read
DIFFICULT = {"star", "cross", "ring"}  # shapes whose pictures come twice as often in the second stage


@dataclass(frozen=True)
class _Text:
    """What the encoders make of prompts: ``hidden`` [N, 77, 160], ``pooled`` [N, 96]."""

    hidden: Tensor
    pooled: Tensor


def train_denoiser(latents: Latents, folder: Path, look: Any, share: float = 1.0) -> dict[str, Any]:
    """Return the trained ``unet``, ``text_encoder`` and ``text_encoder_2``; ``look(step, models)`` may draw.

    First everything learns together; then the text encoders stay as they are, each prompt is encoded once, and the
    U-Net learns alone.
    """
    torch.manual_seed(0)
    merges = merges_of_prompts()
    text_encoder, text_encoder_2 = make_text_encoders(len(vocabulary(merges)))
    models: dict[str, Any] = {"unet": make_unet(), "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    _use_plain_attention(models)
    tokenizers = _tokenizers(folder, merges)

    def together(step: int) -> Tensor:
        rng = Random(f"step {step}")
        chosen = rng.choices(range(len(latents.requests)), k=BATCH)
        prompts = ["" if rng.random() < EMPTY_PROMPT else words(latents.requests[i], rng) for i in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(models["unet"], latents, chosen, _embed(models, tokenizers, prompts), rng)

    fit(TOGETHER.shortened(share), nn.ModuleDict(models), together, folder, lambda step: look(step, models), 2000)

    text = _embed_once(models, tokenizers, latents.requests)
    weights = [2 if any(wanted.shape in DIFFICULT for wanted in r.things) else 1 for r in latents.requests]

    def alone(step: int) -> Tensor:
        rng = Random(f"step {step} alone")
        chosen = rng.choices(range(len(latents.requests)), weights, k=BATCH)
        rows = [-1 if rng.random() < EMPTY_PROMPT else i for i in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(models["unet"], latents, chosen, _Text(text.hidden[rows], text.pooled[rows]), rng)

    unet = nn.ModuleDict({"unet": models["unet"]})
    fit(ALONE.shortened(share), unet, alone, folder, lambda step: look(TOGETHER.steps + step, models), 2000)
    return {name: model.eval() for name, model in models.items()}


def _loss(unet: Any, data: Latents, chosen: list[int], text: _Text, rng: Random) -> Tensor:
    """Mean squared error of v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans and Ho, arXiv 2202.00512) at random timesteps."""
    keep = torch.tensor([rng.random() >= NO_PROMPT for _ in chosen])
    clean = data.latents[chosen].float()
    # One draw from each of BATCH equal slices: the loss varies less than with independent draws. The power favours
    # strong noise, where it is decided what a thing becomes.
    timestep = (1000 * ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH) ** 0.7).long().clamp(max=999)
    noise = torch.randn_like(clean)
    signal = _alphas_cumprod()[timestep].sqrt().view(-1, 1, 1, 1)
    spread = (1 - signal**2).sqrt()
    prediction = unet(
        signal * clean + spread * noise,
        timestep,
        encoder_hidden_states=text.hidden * keep.view(-1, 1, 1),
        added_cond_kwargs={"text_embeds": text.pooled * keep.view(-1, 1), "time_ids": data.time_ids[chosen].float()},
        return_dict=False,
    )[0]
    return nn.functional.mse_loss(prediction.float(), signal * noise - spread * clean)


@torch.no_grad()
def _embed_once(models: dict[str, Any], tokenizers: list[Any], requests: list[Request]) -> _Text:
    """Return one wording of each request, encoded; the last row is the empty prompt's."""
    prompts = [*(words(request, Random(f"words {i}")) for i, request in enumerate(requests)), ""]
    parts = []
    with torch.autocast("cpu", torch.bfloat16):
        for start in track(range(0, len(prompts), 256), description="reading"):
            parts.append(_embed(models, tokenizers, prompts[start : start + 256]))
    return _Text(
        torch.cat([part.hidden.bfloat16() for part in parts]), torch.cat([part.pooled.bfloat16() for part in parts])
    )


def _embed(models: dict[str, Any], tokenizers: list[Any], prompts: list[str]) -> _Text:
    outputs = [
        models[name](
            tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids,
            output_hidden_states=True,
        )
        for name, tokenizer in zip(("text_encoder", "text_encoder_2"), tokenizers, strict=True)
    ]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return _Text(hidden, outputs[1].text_embeds)


def _tokenizers(folder: Path, merges: list[str]) -> list[Any]:
    from transformers import CLIPTokenizer

    save_tokenizers(folder, merges)
    return [CLIPTokenizer.from_pretrained(folder / name) for name in PADS]


@cache
def _alphas_cumprod() -> Tensor:
    from diffusers import EulerDiscreteScheduler

    alphas: Tensor = EulerDiscreteScheduler(**SCHEDULER).alphas_cumprod
    return alphas


def _use_plain_attention(models: dict[str, Any]) -> None:
    """Plain matrix products: on CPU the backward pass of the fused kernel is twice as slow at these sizes."""
    from diffusers.models.attention_processor import AttnProcessor

    models["unet"].set_attn_processor(AttnProcessor())
    for name in ("text_encoder", "text_encoder_2"):
        models[name].set_attn_implementation("eager")
