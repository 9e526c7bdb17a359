"""What a call asks for, checked once: a Request is complete, and holds nothing that can fail later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_bundle.schedulers import SchedulerSpec
from koala_bundle.spec import check_sampling
from koala_bundle.targets import Target
from koala_runtime.arguments import Arguments, Callback, ImageHook, check_names
from koala_runtime.conditioning import Condition, Encoder, read_conditions
from koala_runtime.marking.watermark import check_size
from koala_runtime.pictures import Source, read_source
from koala_runtime.samplers import Schedule, Scheduler, Table, choose
from koala_runtime.seeds import Noise, draw_noise

OUTPUT_TYPES = ("pil", "np", "latent", "device")
CALLBACK_TENSORS = ("latents", "images")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCallback:
    """``function`` is called after every ``every`` steps, with these ``tensors`` of CALLBACK_TENSORS."""

    function: Callback
    tensors: tuple[str, ...]
    every: int


@dataclass(frozen=True, eq=False)
class Request:
    """A whole call for ``count`` pictures. ``stream`` is the handle of the caller's CUDA stream."""

    prompt: Condition
    negative: Condition
    weighted: bool
    noise: Noise
    source: Source | None
    scheduler: SchedulerSpec
    schedule: Schedule
    table: Table
    denoising_end: float | None
    guidance_scale: float
    guidance_rescale: float
    output_type: str
    return_dict: bool
    callback: StepCallback | None
    timings: bool
    stream: int | None
    mark: bool
    on_image: ImageHook | None

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.prompt.texts)

    @property
    def embedded(self) -> bool:
        """Whether the denoiser is given other embeddings than the text encoders make."""
        return any(side.embeddings is not None or side.weighed for side in (self.prompt, self.negative))


def make_request(
    manifest: Manifest, target: Target, encoder: Encoder, scheduler: Scheduler, prompt: object, arguments: Arguments
) -> Request:
    """Return the request of a call, the defaults of the bundle and the pipeline's ``scheduler`` filled in.

    Raises ArgumentError for what cannot be drawn.
    """
    check_names(arguments)
    positive, negative = read_conditions(manifest, encoder, prompt, arguments)
    count = len(positive.texts)
    _check_clip_skip(manifest, arguments.get("clip_skip"))
    schedule, guidance = read_schedule(manifest, arguments), _guidance(manifest, arguments.get("guidance_scale"))
    end = _share("denoising_end", arguments.get("denoising_end"))
    if arguments.get("negative_prompt") is not None and guidance <= 1:
        _log.warning("negative_prompt has no effect while guidance_scale is %g; it takes more than 1", guidance)
    scheduler = choose(arguments.get("scheduler"), scheduler)
    source = read_source(manifest, count, arguments)
    table = _until(scheduler, schedule if source is None else _begun(scheduler, schedule, source), end)
    pictures, masked = (0, 0) if source is None else (len(source.pixels), source.masked)
    shape = (count, *manifest.component("vae_decoder").inputs[0].shape[1:])
    output_type = _output_type(manifest, target, count, arguments.get("output_type"))
    _check_pixels(manifest, output_type, arguments)
    return Request(
        positive,
        negative,
        bool(arguments.get("weighted")),
        draw_noise(arguments, shape, int(table.draws.sum()), pictures=pictures, masked=masked),
        source,
        scheduler.spec,
        schedule,
        table,
        end,
        guidance,
        _rescale(manifest, arguments.get("guidance_rescale")),
        output_type,
        arguments.get("return_dict") is not False,
        _callback(arguments),
        bool(arguments.get("timings")),
        _stream(target, arguments.get("stream")),
        bool(arguments.get("mark")),
        arguments.get("on_image"),
    )


def read_schedule(manifest: Manifest, arguments: Arguments) -> Schedule:
    """Return how many steps a call takes, or at which timesteps or noise levels. Raises ArgumentError."""
    own = {name: _numbers(name, arguments.get(name)) for name in ("timesteps", "sigmas")}
    if all(own.values()):
        raise ArgumentError("sigmas", expected="none with timesteps", found="both", fix="leave one of them out")
    count = arguments.get("num_inference_steps")
    if any(own.values()):
        count = len(own["timesteps"]) or len(own["sigmas"]) - 1
    elif count is None:
        count = manifest.sampling.num_inference_steps
    check_sampling(count, manifest.spec.scheduler["num_train_timesteps"], 1)
    return Schedule(int(count), _share("eta", arguments.get("eta")) or 0.0, own["timesteps"], own["sigmas"])


def _numbers(argument: str, values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if found.ndim != 1 or len(found) < (2 if argument == "sigmas" else 1) or not np.isfinite(found).all():
        expected = "two or more numbers, where the last is the end" if argument == "sigmas" else "one or more numbers"
        raise ArgumentError(argument, expected=expected, found=repr(values)[:60], fix="pass a list, or leave it out")
    return tuple(found.tolist())


def _guidance(manifest: Manifest, guidance: float | None) -> float:
    guidance = manifest.sampling.guidance_scale if guidance is None else guidance
    check_sampling(1, 1, guidance)
    if guidance > 1 and not manifest.profile.cfg:
        raise ArgumentError(
            "guidance_scale",
            expected="1 or less in a bundle that was exported without guidance",
            found=f"{guidance:g}",
            fix="pass 1, or export the bundle again with guidance compiled in",
        )
    return float(guidance)


def _check_clip_skip(manifest: Manifest, clip_skip: int | None) -> None:
    own = manifest.profile.clip_skip
    if clip_skip not in (None, own):
        raise ArgumentError(
            "clip_skip",
            expected=f"{own}, which is compiled in",
            found=repr(clip_skip),
            fix="leave it out, or export the bundle again with this number of layers to skip",
        )


def _share(argument: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1:
        return float(value)
    raise ArgumentError(argument, expected="a number from 0 to 1", found=repr(value), fix="pass one, or leave it out")


def _rescale(manifest: Manifest, value: float | None) -> float:
    rescale = _share("guidance_rescale", value) or 0.0
    if rescale and not manifest.profile.guidance_rescale:
        raise ArgumentError(
            "guidance_rescale",
            expected="0 in a bundle that was exported without it",
            found=f"{rescale:g}",
            fix="leave it out, or export the bundle again with the rescaling of guidance compiled in",
        )
    return rescale


def _begun(scheduler: Scheduler, schedule: Schedule, source: Source) -> Schedule:
    """Return the schedule without the steps that a picture begins after."""
    counted = scheduler.counted(schedule)
    begun = replace(schedule, skipped=source.skipped(counted))
    if not scheduler.leaves(begun):
        raise ArgumentError(
            "strength",
            expected=f"a share that leaves one of {counted} steps to draw",
            found=f"{source.strength:g}",
            fix="pass a larger strength, or more steps",
        )
    return begun


def _until(scheduler: Scheduler, schedule: Schedule, end: float | None) -> Table:
    shorter = scheduler.table(schedule).until(end, scheduler.spec["num_train_timesteps"])
    if not len(shorter.timesteps):
        raise ArgumentError(
            "denoising_end",
            expected="a share that leaves a step to draw",
            found=f"{end:g}",
            fix="pass a larger one, or more steps",
        )
    return shorter


def _callback(arguments: Arguments) -> StepCallback | None:
    function, every = arguments.get("callback_on_step_end"), arguments.get("callback_steps")
    tensors: Sequence[str] | None = arguments.get("callback_on_step_end_tensor_inputs")
    every, tensors = 1 if every is None else every, ("latents",) if tensors is None else tensors
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
    if function is not None and arguments.get("timings"):
        raise ArgumentError("timings", expected="False with a callback", found="True", fix="leave one of them out")
    return None if function is None else StepCallback(function, tuple(tensors), int(every))


def _output_type(manifest: Manifest, target: Target, count: int, output_type: str | None) -> str:
    output_type = "pil" if output_type is None else output_type
    if output_type not in OUTPUT_TYPES:
        fix = "pass np, and torch.from_numpy(images)" if output_type == "pt" else "pass one of these"
        raise ArgumentError("output_type", expected=" or ".join(OUTPUT_TYPES), found=repr(output_type), fix=fix)
    batch = manifest.profile.batch
    if output_type == "device" and not (target.has_device and count <= batch):
        raise ArgumentError(
            "output_type",
            expected=f"at most {batch} prompts with device" if target.has_device else "pil or np on this target",
            found=f"{count} prompts" if target.has_device else f"device on target {target}",
            fix="call once per batch" if target.has_device else "pass np",
        )
    return output_type


def _check_pixels(manifest: Manifest, output_type: str, arguments: Arguments) -> None:
    for name in ("mark", "on_image"):
        if arguments.get(name) and output_type not in ("pil", "np"):
            raise ArgumentError(
                name,
                expected="none with this output_type",
                found=repr(output_type),
                fix="pass pil or np, or leave it out",
            )
    if arguments.get("mark"):
        check_size(manifest.profile.height, manifest.profile.width)


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
