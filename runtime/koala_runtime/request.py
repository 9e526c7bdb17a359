"""What a call asks for, checked once: a Request is complete, and holds nothing that can fail later."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_bundle.spec import check_sampling
from koala_bundle.targets import Target
from koala_runtime.noise import randn
from koala_runtime.prompts import check_text
from koala_runtime.schedule import Schedule, make_schedule

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Callback = Callable[..., "dict[str, Any] | None"]

OUTPUT_TYPES = ("pil", "np", "device")
CALLBACK_TENSORS = ("latents", "images")
_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """Texts to the token ids of both text encoders (``koala_runtime.prompts.PromptEncoder``)."""

    def encode(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return int32 [len(texts), sequence length] twice."""


@dataclass(frozen=True)
class StepCallback:
    """``function`` is called after every ``every`` steps, with these ``tensors`` of CALLBACK_TENSORS."""

    function: Callback
    tensors: tuple[str, ...]
    every: int


@dataclass(frozen=True, eq=False)
class Request:
    """A whole call; n is the number of prompts.

    - ``negative_prompts``: n; None asks for zero embeddings where the model has them.
    - ``prompt_ids``, ``negative_ids``: int32 [n, sequence length] for each of the two text encoders.
    - ``latents``: float32 [n, channels, height / 8, width / 8], unit variance; ``seed`` is what they were drawn
      with, None if the caller brought his own.
    - ``time_ids``: float32 [6]: original size, crop corner and target size, each (height, width) in pixels.
    - ``stream``: handle of the caller's CUDA stream.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]
    prompt_ids: tuple[Ids, Ids]
    negative_ids: tuple[Ids, Ids]
    schedule: Schedule
    num_inference_steps: int
    guidance_scale: float
    seed: int | None
    latents: Floats
    time_ids: Floats
    output_type: str
    callback: StepCallback | None
    timings: bool
    stream: int | None


def make_request(
    manifest: Manifest,
    target: Target,
    encoder: Encoder,
    *,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int | None = None,
    latents: Floats | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callback | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    callback_steps: int = 1,
    timings: bool = False,
    stream: Any = None,
    original_size: tuple[int, int] | None = None,
    crops_coords_top_left: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
) -> Request:
    """Return the request of a call (``Pipeline.__call__`` describes the arguments), the bundle's defaults filled in.

    Raises ArgumentError for whatever cannot be drawn.
    """
    prompts = [check_text("prompt", text) for text in _texts("prompt", prompt)]
    if not prompts:
        raise ArgumentError("prompt", expected="at least one text", found="an empty list", fix="pass a prompt")
    negatives = _negatives(negative_prompt, len(prompts))
    if output_type not in OUTPUT_TYPES:
        raise ArgumentError(
            "output_type", expected=" or ".join(OUTPUT_TYPES), found=repr(output_type), fix="pass one of these"
        )
    seed = _seed(seed)
    steps, guidance = _sampling(manifest, num_inference_steps, guidance_scale)
    if negative_prompt is not None and guidance <= 1:
        _log.warning("negative_prompt has no effect while guidance_scale is %g; it takes more than 1", guidance)
    own = (manifest.profile.height, manifest.profile.width)
    time_ids = (
        *_size("original_size", own if original_size is None else original_size),
        *_size("crops_coords_top_left", crops_coords_top_left),
        *_size("target_size", own if target_size is None else target_size),
    )
    callback = _callback(callback_on_step_end, callback_on_step_end_tensor_inputs, callback_steps, timings)
    _check_output(manifest, target, len(prompts), output_type)
    handle = _stream(target, stream)
    shape = (len(prompts), *manifest.component("vae_decoder").inputs[0].shape[1:])
    if latents is not None:
        latents, seed = check_latents(latents, shape), None
    else:
        seed = secrets.randbits(32) if seed is None else seed
        latents = randn(shape, seed)
    return Request(
        tuple(prompts),
        tuple(negatives),
        encoder.encode(prompts),
        encoder.encode([text or "" for text in negatives]),
        make_schedule(manifest.spec.scheduler, steps),
        steps,
        guidance,
        seed,
        latents,
        np.array(time_ids, np.float32),
        output_type,
        callback,
        timings,
        handle,
    )


def check_latents(latents: Floats, shape: tuple[int, ...]) -> Floats:
    """Return ``latents`` as float32 of ``shape``. Raises ArgumentError for another shape or values not finite."""
    try:
        latents = np.asarray(latents, np.float32)
    except (TypeError, ValueError):
        raise ArgumentError(
            "latents", expected="an array of float32", found=type(latents).__name__, fix="pass a numpy array"
        ) from None
    if latents.shape != shape:
        raise ArgumentError(
            "latents",
            expected=f"shape {list(shape)}",
            found=str(list(latents.shape)),
            fix="pass one set of latents per prompt, at the bundle's size",
        )
    if not np.isfinite(latents).all():
        raise ArgumentError("latents", expected="finite values", found="NaN or infinity", fix="pass normal noise")
    return latents


def _seed(seed: object) -> int | None:
    if seed is None or (isinstance(seed, Integral) and not isinstance(seed, bool)):
        return None if seed is None else int(seed)
    raise ArgumentError("seed", expected="a whole number", found=repr(seed), fix="pass an int, or None")


def _sampling(manifest: Manifest, steps: int | None, guidance: float | None) -> tuple[int, float]:
    steps = manifest.sampling.num_inference_steps if steps is None else steps
    guidance = manifest.sampling.guidance_scale if guidance is None else guidance
    check_sampling(steps, manifest.spec.scheduler.num_train_timesteps, guidance)
    if guidance > 1 and not manifest.profile.cfg:
        raise ArgumentError(
            "guidance_scale",
            expected="1 or less in a bundle that was exported without guidance",
            found=f"{guidance:g}",
            fix="pass 1, or export the bundle again with guidance compiled in",
        )
    return int(steps), float(guidance)


def _callback(function: Callback | None, tensors: Sequence[str], every: int, timings: bool) -> StepCallback | None:
    unknown = [name for name in tensors if name not in CALLBACK_TENSORS]
    if unknown:
        raise ArgumentError(
            "callback_on_step_end_tensor_inputs",
            expected=" and ".join(CALLBACK_TENSORS),
            found=repr(unknown[0]),
            fix="pass these names only",
        )
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise ArgumentError("callback_steps", expected="1 or more", found=repr(every), fix="pass a number of steps")
    if function is not None and timings:
        raise ArgumentError("timings", expected="False with a callback", found="True", fix="leave one of them out")
    return None if function is None else StepCallback(function, tuple(tensors), int(every))


def _check_output(manifest: Manifest, target: Target, prompts: int, output_type: str) -> None:
    batch = manifest.profile.batch
    if output_type == "device" and not (target.has_device and prompts <= batch):
        raise ArgumentError(
            "output_type",
            expected=f"at most {batch} prompts with device" if target.has_device else "pil or np on this target",
            found=f"{prompts} prompts" if target.has_device else f"device on target {target}",
            fix="call once per batch" if target.has_device else "pass np",
        )


def _stream(target: Target, stream: Any) -> int | None:
    """Return the handle of the caller's CUDA stream, if there is one."""
    if stream is None:
        return None
    handle = stream.__cuda_stream__()[1] if hasattr(stream, "__cuda_stream__") else stream
    if not target.has_device or isinstance(handle, bool) or not isinstance(handle, Integral):
        raise ArgumentError(
            "stream",
            expected="a CUDA stream" if target.has_device else f"None on target {target}",
            found=repr(stream),
            fix="pass its handle, or an object with __cuda_stream__" if target.has_device else "leave it out",
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
            fix="pass one text for all prompts or as many texts as prompts",
        )
    return negatives


def _texts(argument: str, texts: object) -> list[object]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Iterable) and not isinstance(texts, bytes):
        return list(texts)
    raise ArgumentError(argument, expected="text, or a list of texts", found=repr(texts), fix="pass a string")


def _size(argument: str, size: object) -> tuple[float, float]:
    """Return (height, width) if that is what ``size`` is."""
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Real) for side in size):
        height, width = (float(side) for side in size)
        if abs(height) + abs(width) < math.inf:
            return height, width
    raise ArgumentError(argument, expected="(height, width) in pixels", found=repr(size), fix="pass two numbers")
