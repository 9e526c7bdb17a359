"""What a call asks for, checked once: a Request holds nothing that can fail later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from koala_runtime.contract.errors import ArgumentError
from koala_runtime.contract.manifest import Manifest
from koala_runtime.contract.spec import check_sampling
from koala_runtime.prompts import check_text

OUTPUT_TYPES = ("pil", "np")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """``negative_prompts``: as long as ``prompts``; None asks for zero embeddings where the model has them."""

    prompts: list[str]
    negative_prompts: list[str | None]
    num_inference_steps: int
    guidance_scale: float


def check(
    manifest: Manifest,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    seed: int | None,
    output_type: str,
) -> Request:
    """Return the request, with the bundle's defaults filled in. Raises ArgumentError."""
    prompts = [check_text("prompt", text) for text in ([prompt] if isinstance(prompt, str) else list(prompt))]
    if not prompts:
        raise ArgumentError("prompt", expected="at least one text", found="an empty list", mend="pass a prompt")
    if output_type not in OUTPUT_TYPES:
        raise ArgumentError(
            "output_type", expected=" or ".join(OUTPUT_TYPES), found=repr(output_type), mend="pass one of these"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise ArgumentError("seed", expected="a whole number", found=repr(seed), mend="pass an int, or None")
    steps = manifest.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
    guidance = manifest.sampling.guidance_scale if guidance_scale is None else guidance_scale
    check_sampling(steps, manifest.spec.scheduler.num_train_timesteps, guidance)
    if guidance > 1 and not manifest.profile.cfg:
        raise ArgumentError(
            "guidance_scale",
            expected="1 or less in a bundle exported with --no-cfg",
            found=f"{guidance:g}",
            mend="pass 1, or export the bundle again with --cfg",
        )
    if negative_prompt is not None and guidance <= 1:
        _log.warning("negative_prompt has no effect while guidance_scale is %g; it takes more than 1", guidance)
    return Request(prompts, _negatives(negative_prompt, len(prompts)), steps, float(guidance))


def check_latents(latents: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return ``latents`` as float32 of ``shape``. Raises ArgumentError for another shape or values not finite."""
    latents = np.asarray(latents, np.float32)
    if latents.shape != shape:
        raise ArgumentError(
            "latents",
            expected=f"shape {list(shape)}",
            found=str(list(latents.shape)),
            mend="pass one set of latents per prompt, at the bundle's size",
        )
    if not np.isfinite(latents).all():
        raise ArgumentError("latents", expected="finite values", found="NaN or infinity", mend="pass normal noise")
    return latents


def _negatives(negative: str | Sequence[str] | None, count: int) -> list[str | None]:
    if negative is None:
        return [None] * count
    if isinstance(negative, str):
        return [check_text("negative_prompt", negative)] * count
    negatives: list[str | None] = [check_text("negative_prompt", text) for text in negative]
    if len(negatives) != count:
        raise ArgumentError(
            "negative_prompt",
            expected=f"{count}, one per prompt",
            found=str(len(negatives)),
            mend="pass one text for all prompts or as many texts as prompts",
        )
    return negatives
