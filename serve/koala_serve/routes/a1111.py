"""The API of the AUTOMATIC1111 web UI, as far as front ends for SDXL call it: ``/sdapi/v1/...``.

What it can do and this server cannot is refused by name when it is asked for, and ignored at the value that leaves
the picture as it is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from koala_bundle.errors import ArgumentError
from koala_runtime.samplers.names import NAMES
from koala_serve.image_request import ImageRequest
from koala_serve.job import Job, State
from koala_serve.model import Model
from koala_serve.routes.fields import check_size, from_base64, to_base64
from koala_serve.routes.masks import inverted
from koala_serve.routes.waiting import describe, pictures_of, service_of

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
PREVIEWS = 4
_SPACINGS = {"karras": " Karras", "exponential": " Exponential", "beta": " Beta", "automatic": "", "": ""}
_UNCHANGED: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "script_name": ("",),
    "alwayson_scripts": ({},),
    "refiner_checkpoint": ("", "None"),
}
"""Fields that change the picture there, and their values that do not; None is always one."""


class Txt2Img(BaseModel):
    """A request in this API's words. Fields that it does not name are those of the front end and are ignored."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str | None = ""
    seed: int | None = Field(-1, ge=-(2**63), lt=2**63)
    steps: int | None = Field(None, ge=1)
    cfg_scale: float | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = Field(1, ge=1)
    n_iter: int | None = Field(1, ge=1)
    width: int | None = None
    height: int | None = None
    denoising_strength: float | None = None
    send_images: bool | None = True
    override_settings: dict[str, Any] | None = None


class Img2Img(Txt2Img):
    """With ``init_images``, one picture as base64, and a ``mask`` that is white where to paint."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    inpainting_mask_invert: int | bool | None = 0


@router.post("/txt2img")
async def txt2img(request: Request, given: Txt2Img) -> dict[str, Any]:
    """Draw pictures of a prompt."""
    return await _answer(request, given, _wanted(request, given))


@router.post("/img2img")
async def img2img(request: Request, given: Img2Img) -> dict[str, Any]:
    """Draw pictures that begin with one."""
    image, mask = from_base64("init_images", given.init_images[0]), from_base64("mask", given.mask)
    if mask is not None and given.inpainting_mask_invert:
        mask = inverted(mask)
    return await _answer(request, given, _wanted(request, given, image, mask))


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Say how far the oldest job of this API is that has not ended."""
    job = _current(request)
    state = {
        "skipped": False,
        "interrupted": False,
        "job": "" if job is None else job.id,
        "job_count": 0 if job is None else job.request.count,
        "job_no": 0 if job is None else sum(picture.file is not None for picture in job.pictures),
        "sampling_step": 0 if job is None else job.step,
        "sampling_steps": 0 if job is None else job.steps,
    }
    shown = None if job is None or job.preview is None or skip_current_image else to_base64(job.preview)
    share = 0.0 if job is None else job.share
    return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": shown, "textinfo": None}


@router.post("/interrupt")
@router.post("/skip")
async def interrupt(request: Request) -> dict[str, Any]:
    """Cancel the job that ``progress`` tells of."""
    job = _current(request)
    if job is not None:
        service_of(request).cancel(job)
    return {}


@router.get("/options")
async def options(request: Request) -> dict[str, Any]:
    """Return the model that requests without one are drawn with, and whether there are previews."""
    model = _model(request)
    return {
        "sd_model_checkpoint": model.name,
        "samples_format": "png",
        "show_progress_every_n_steps": 1 if request.app.state.a1111_previews else 0,
        "CLIP_stop_at_last_layers": 1 + model.checker.manifest.profile.clip_skip,
    }


@router.post("/options")
async def set_options(request: Request, given: dict[str, Any]) -> None:
    """Choose the model of later requests, and previews for ``progress``; other options are ignored."""
    if (name := given.get("sd_model_checkpoint")) is not None:
        request.app.state.a1111_model = service_of(request).model(_name(name)).name
    if (every := given.get("show_progress_every_n_steps")) is not None:
        request.app.state.a1111_previews = isinstance(every, int) and every > 0


@router.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """List the bundles."""
    return [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": model.digest[:10],
            "sha256": model.digest,
            "filename": model.name,
            "config": None,
        }
        for model in service_of(request).models.values()
    ]


@router.get("/samplers")
async def samplers(request: Request) -> list[dict[str, Any]]:
    """List the samplers of the chosen model by this API's names."""
    names = _model(request).checker.schedulers
    return [{"name": NAMES[name].label, "aliases": [name], "options": {}} for name in names]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """List how noise levels can be spread; some samplers have them all."""
    labels = {name: name.title() for name in _SPACINGS if name}
    return [{"name": name, "label": label, "aliases": None} for name, label in labels.items()]


@router.get("/loras")
@router.get("/hypernetworks")
@router.get("/sd-vae")
@router.get("/upscalers")
@router.get("/face-restorers")
@router.get("/prompt-styles")
async def none() -> list[Any]:
    """Say that there are none: what is compiled into a bundle cannot be exchanged."""
    return []


@router.get("/embeddings")
async def embeddings() -> dict[str, Any]:
    """Say that there are none to choose from; learned words are part of a bundle's tokenizers."""
    return {"loaded": {}, "skipped": {}}


@router.get("/cmd-flags")
async def flags() -> dict[str, Any]:
    """Say that the API is on."""
    return {"api": True}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """Say nothing of memory; ``/metrics`` is the place to look."""
    return {"ram": {}, "cuda": {}}


@router.post("/refresh-checkpoints")
async def refresh() -> None:
    """Do nothing: bundles are given to the server when it starts."""


def _name(title: Any) -> str:
    """Return a model's name without the hash that this API adds in brackets."""
    return str(title).partition(" [")[0]


def _model(request: Request, override: dict[str, Any] | None = None) -> Model:
    chosen = (override or {}).get("sd_model_checkpoint") or request.app.state.a1111_model
    return service_of(request).model(None if chosen is None else _name(chosen))


def _wanted(request: Request, given: Txt2Img, image: bytes | None = None, mask: bytes | None = None) -> ImageRequest:
    for name, value in (given.model_extra or {}).items():
        if name in _UNCHANGED and value is not None and value not in _UNCHANGED[name]:
            raise ArgumentError(
                name, expected="none: this server has no such thing", found=repr(value)[:60], fix="leave it out"
            )
    model = _model(request, given.override_settings)
    own = model.checker.manifest.profile
    check_size(f"{given.width or own.width}x{given.height or own.height}", model.checker.size)
    return ImageRequest(
        model=model.name,
        prompt=given.prompt,
        seed=secrets.randbits(32) if given.seed in (None, -1) else int(given.seed or 0),
        count=(given.batch_size or 1) * (given.n_iter or 1),
        negative_prompt=given.negative_prompt or None,
        num_inference_steps=given.steps,
        guidance_scale=given.cfg_scale,
        scheduler=_scheduler(given),
        weighted=True,  # as that web UI reads (word:1.3)
        image=image,
        mask=mask,
        strength=None if image is None else (0.75 if given.denoising_strength is None else given.denoising_strength),
        previews=PREVIEWS if request.app.state.a1111_previews else 0,
    )


def _scheduler(given: Txt2Img) -> str | None:
    """Return a sampler's name together with the spacing of its noise levels, which this API has apart."""
    name, spacing = given.sampler_name or given.sampler_index, (given.scheduler or "").lower()
    if spacing not in _SPACINGS:
        raise ArgumentError(
            "scheduler",
            expected="Automatic, Karras, Exponential or Beta",
            found=repr(given.scheduler),
            fix="choose one of these, or leave it out",
        )
    ending = _SPACINGS[spacing]
    return name if name is None or name.lower().endswith(ending.lower()) else name + ending


async def _answer(request: Request, given: Txt2Img, wanted: ImageRequest) -> dict[str, Any]:
    job = await service_of(request).submit(wanted, watched=True)
    describe(request, job)
    jobs: dict[str, Job] = request.app.state.a1111_jobs
    jobs[job.id] = job
    try:
        pictures = await pictures_of(job, request)
    finally:
        del jobs[job.id]
    recipes = [json.loads(picture.recipe) for picture in pictures]
    profile = service_of(request).model(wanted.model).checker.manifest.profile
    info = {
        "prompt": wanted.prompt,
        "all_prompts": [wanted.prompt] * wanted.count,
        "negative_prompt": wanted.negative_prompt or "",
        "all_negative_prompts": [wanted.negative_prompt or ""] * wanted.count,
        "seed": wanted.seed,
        "all_seeds": [wanted.seed_of(index) for index in range(wanted.count)],
        "width": profile.width,
        "height": profile.height,
        "sampler_name": wanted.scheduler or service_of(request).model(wanted.model).checker.scheduler,
        "cfg_scale": recipes[0]["guidance_scale"],
        "steps": recipes[0]["num_inference_steps"],
        "denoising_strength": wanted.strength,
        "sd_model_name": wanted.model,
        "infotexts": [picture.parameters for picture in pictures],
        "index_of_first_image": 0,
    }
    images = [to_base64(picture.file) for picture in pictures] if given.send_images is not False else []
    shown = given.model_dump(exclude={"init_images", "mask"})
    return {"images": images, "parameters": shown, "info": json.dumps(info)}


def _current(request: Request) -> Job | None:
    jobs: Sequence[Job] = [*request.app.state.a1111_jobs.values()]
    drawn = (job for job in jobs if job.state is State.GENERATING)
    return next(drawn, jobs[0] if jobs else None)
