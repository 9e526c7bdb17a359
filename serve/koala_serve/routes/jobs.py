"""Jobs: pictures that are asked for now and fetched later. ``/v1/jobs`` takes what ``/v1/images/generations`` takes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from starlette.responses import JSONResponse, Response, StreamingResponse

from koala_serve.errors import UnknownJobError
from koala_serve.image_request import FORMATS
from koala_serve.job import Job, State
from koala_serve.replies import error_body
from koala_serve.routes.fields import JobGeneration, from_base64, make_image_request, to_base64
from koala_serve.routes.masks import white_where_transparent
from koala_serve.routes.waiting import describe, service_of

router = APIRouter(tags=["jobs"])


@router.post("/v1/jobs", status_code=202)
async def submit(request: Request, given: JobGeneration) -> Response:
    """Take a request and answer at once; ``status_url`` in the answer tells how far it is."""
    image, mask = from_base64("image", given.image), from_base64("mask", given.mask)
    mask = None if mask is None else white_where_transparent(mask)
    wanted = make_image_request(service_of(request), given, image, mask, given.previews or 0)
    job = await service_of(request).submit(wanted, watched=True, keep=True)
    describe(request, job)
    shown = _shown(request, job)
    return JSONResponse(shown, 202, {"Location": shown["status_url"]})


@router.get("/v1/jobs/{number}", name="job")
async def show(request: Request, number: str) -> dict[str, Any]:
    """Return a job's status, its place in the queue, how much of it is done, and its pictures' addresses."""
    return _shown(request, service_of(request).job(number))


@router.post("/v1/jobs/{number}/cancel")
@router.delete("/v1/jobs/{number}")
async def cancel(request: Request, number: str) -> dict[str, Any]:
    """Give a job up. One that is over stays as it is."""
    job = service_of(request).job(number)
    service_of(request).cancel(job)
    return _shown(request, job)


@router.get("/v1/jobs/{number}/events")
async def events(request: Request, number: str) -> Response:
    """Send ``progress`` and ``preview`` events, then one that is called as the status with which the job ended."""
    return StreamingResponse(_events(request, service_of(request).job(number)), media_type="text/event-stream")


@router.get("/v1/jobs/{number}/images/{index}", name="image")
async def image(request: Request, number: str, index: int) -> Response:
    """Return a picture's file."""
    job = service_of(request).job(number)
    file = job.pictures[index].file if 0 <= index < len(job.pictures) else None
    if file is None:
        raise UnknownJobError(
            "the picture", expected="one that is finished", found=f"{index} of a job that is {job.state}", fix="wait"
        )
    return Response(file, media_type=FORMATS[job.request.format], headers={"Cache-Control": "private, max-age=3600"})


def _shown(request: Request, job: Job) -> dict[str, Any]:
    model = service_of(request).model(job.request.model)
    pictures = [
        {
            "url": request.url_for("image", number=job.id, index=picture.index).path,
            "seed": job.request.seed_of(picture.index),
            "recipe": json.loads(picture.recipe),
        }
        for picture in job.pictures
        if picture.file is not None
    ]
    return {
        "id": job.id,
        "object": "job",
        "model": job.request.model,
        "status": job.state.value,
        "status_url": request.url_for("job", number=job.id).path,
        "queue_position": model.position(job) if job.state is State.QUEUED else None,
        "progress": round(job.share, 4),
        "step": job.step,
        "steps": job.steps,
        "created_at": int(job.created),
        "seconds": None if job.ended is None else round(job.ended - job.created, 3),
        "size": model.checker.size,
        "data": pictures,
        "error": None if job.error is None else error_body(job.error)["error"],
    }


async def _events(request: Request, job: Job) -> AsyncIterator[bytes]:
    async for progress in job.progress():
        shown = _shown(request, job)
        if progress.preview is None:
            kept = {name: shown[name] for name in ("id", "status", "queue_position", "progress", "step", "steps")}
            yield format_sse_event(event="progress", data_str=json.dumps(kept))
        else:
            preview = {"index": progress.index, "number": progress.preview_number}
            data = {**preview, "b64_json": to_base64(progress.preview), "output_format": "jpeg"}
            yield format_sse_event(event="preview", data_str=json.dumps(data))
    yield format_sse_event(event=job.state.value, data_str=json.dumps(_shown(request, job)))
