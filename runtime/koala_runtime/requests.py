"""What a call asks for, checked once: a Request holds nothing that can fail later."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koala_runtime.contract.errors import ArgumentError
from koala_runtime.contract.manifest import Manifest
from koala_runtime.contract.spec import check_sampling
from koala_runtime.prompts import check_text

OUTPUT_TYPES = ("pil", "np", "device")
WATCHED = ("latents", "images")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """``negative_prompts``: as long as ``prompts``; None asks for zero embeddings where the model has them.

    ``time_ids`` float32 [6]: original size, crop corner and target size, each (height, width) in pixels.
    """

    prompts: list[str]
    negative_prompts: list[str | None]
    num_inference_steps: int
    guidance_scale: float
    seed: int | None
    time_ids: NDArray[np.float32]


def check(
    manifest: Manifest,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    seed: int | None,
    sizes: Mapping[str, tuple[int, int] | None],
    output_type: str,
) -> Request:
    """Return the request, with the bundle's defaults filled in. Raises ArgumentError.

    ``sizes``: the micro-conditioning by argument name, in the order of ``time_ids``; None is the bundle's own size.
    """
    prompts: list[str] = [check_text("prompt", text) for text in _texts("prompt", prompt)]
    if not prompts:
        raise ArgumentError("prompt", expected="at least one text", found="an empty list", mend="pass a prompt")
    if output_type not in OUTPUT_TYPES:
        raise ArgumentError(
            "output_type", expected=" or ".join(OUTPUT_TYPES), found=repr(output_type), mend="pass one of these"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
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
    own = (manifest.profile.height, manifest.profile.width)
    time_ids = [_size(name, own if size is None else size) for name, size in sizes.items()]
    return Request(
        prompts,
        _negatives(negative_prompt, len(prompts)),
        int(steps),
        float(guidance),
        None if seed is None else int(seed),
        np.array(time_ids, np.float32).ravel(),
    )


def check_latents(latents: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return ``latents`` as float32 of ``shape``. Raises ArgumentError for another shape or values not finite."""
    try:
        latents = np.asarray(latents, np.float32)
    except (TypeError, ValueError):
        raise ArgumentError(
            "latents", expected="an array of float32", found=type(latents).__name__, mend="pass a numpy array"
        ) from None
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


def check_watch(called: bool, tensors: Sequence[str], every: int, timings: bool) -> Sequence[str]:
    """Return what a callback is to see. Raises ArgumentError."""
    unknown = [name for name in tensors if name not in WATCHED]
    if unknown:
        raise ArgumentError(
            "callback_on_step_end_tensor_inputs",
            expected=" and ".join(WATCHED),
            found=repr(unknown[0]),
            mend="pass these names only",
        )
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise ArgumentError("callback_steps", expected="1 or more", found=repr(every), mend="pass a number of steps")
    if called and timings:
        raise ArgumentError(
            "timings",
            expected="False with a callback",
            found="True",
            mend="leave one of them out",
        )
    return tensors


def check_device(manifest: Manifest, target: str, prompts: int, output_type: str, stream: Any) -> int | None:
    """Return the handle of the caller's stream, if there is one. Raises ArgumentError."""
    on_gpu, batch = target != "cpu", manifest.profile.batch
    if output_type == "device" and not (on_gpu and prompts <= batch):
        raise ArgumentError(
            "output_type",
            expected="pil or np on this target" if not on_gpu else f"at most {batch} prompts with device",
            found=f"device on target {target}" if not on_gpu else f"{prompts} prompts",
            mend="pass np" if not on_gpu else "call once per batch",
        )
    if stream is None:
        return None
    handle = stream.__cuda_stream__()[1] if hasattr(stream, "__cuda_stream__") else stream
    if not on_gpu or isinstance(handle, bool) or not isinstance(handle, Integral):
        raise ArgumentError(
            "stream",
            expected="a CUDA stream" if on_gpu else f"None on target {target}",
            found=repr(stream),
            mend="pass its handle, or an object with __cuda_stream__" if on_gpu else "leave it out",
        )
    return int(handle)


def _negatives(negative: str | Sequence[str] | None, count: int) -> list[str | None]:
    if negative is None:
        return [None] * count
    if isinstance(negative, str):
        return [check_text("negative_prompt", negative)] * count
    negatives: list[str | None] = [check_text("negative_prompt", text) for text in _texts("negative_prompt", negative)]
    if len(negatives) != count:
        raise ArgumentError(
            "negative_prompt",
            expected=f"{count}, one per prompt",
            found=str(len(negatives)),
            mend="pass one text for all prompts or as many texts as prompts",
        )
    return negatives


def _texts(argument: str, texts: object) -> list[object]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Iterable) and not isinstance(texts, bytes):
        return list(texts)
    raise ArgumentError(argument, expected="text, or a list of texts", found=repr(texts), mend="pass a string")


def _size(argument: str, size: object) -> tuple[float, float]:
    """Return (height, width) if that is what ``size`` is."""
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Real) for side in size):
        height, width = (float(side) for side in size)
        if abs(height) + abs(width) < math.inf:
            return height, width
    raise ArgumentError(argument, expected="(height, width) in pixels", found=repr(size), mend="pass two numbers")
