"""OpenAI's images API: ``/v1/images/generations``, ``/v1/images/edits``, ``/v1/models``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from koala_bundle.errors import ArgumentError, KoalaError
from koala_serve.image_request import ImageRequest
from koala_serve.job import Job, Picture
from koala_serve.model import Model
from koala_serve.replies import error_body
from koala_serve.routes.fields import Generation, described, make_image_request, to_base64
from koala_serve.routes.masks import white_where_transparent
from koala_serve.routes.waiting import describe, pictures_of, service_of

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/images/generations")
async def generate(request: Request, given: Generation) -> Response:
    """Draw pictures of a prompt."""
    wanted = make_image_request(service_of(request), given, previews=_previews(given))
    return await _answer(request, given, wanted, "image_generation")


@router.post("/v1/images/edits")
async def edit(request: Request) -> Response:
    """Draw pictures that begin with one; with a mask, paint only where it is transparent or white."""
    async with request.form(max_files=4, max_fields=40, max_part_size=64 * 2**10) as form:
        files: dict[str, list[bytes]] = {}
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = value
            else:
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
    if unknown := [name for name in files if name not in ("image", "mask")]:
        raise ArgumentError(unknown[0], expected="image and mask as files", found="another", fix="leave it out")
    if len(files.get("image", ())) != 1 or len(files.get("mask", ())) > 1:
        raise ArgumentError(
            "image", expected="one picture", found=str(len(files.get("image", ()))), fix="send one file as image"
        )
    try:
        given = Generation.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    mask = white_where_transparent(files["mask"][0]) if "mask" in files else None
    wanted = make_image_request(service_of(request), given, files["image"][0], mask, _previews(given))
    return await _answer(request, given, wanted, "image_edit")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """List the bundles, each with its size, defaults and samplers."""
    return {"object": "list", "data": [_model(each) for each in service_of(request).models.values()]}


@router.get("/v1/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Return one of them."""
    return _model(service_of(request).model(name))


def _model(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "koala-trt", **described(model)}


def _previews(given: Generation) -> int:
    return (given.partial_images or 0) if given.stream else 0


async def _answer(request: Request, given: Generation, wanted: ImageRequest, kind: str) -> Response:
    links = given.response_format == "url"
    if links and given.stream:
        raise ArgumentError("response_format", expected="b64_json in a stream", found="url", fix="leave it out")
    job = await service_of(request).submit(wanted, watched=bool(given.stream), keep=links)
    describe(request, job)
    if given.stream:
        return StreamingResponse(_events(request, job, kind), media_type="text/event-stream")
    pictures = await pictures_of(job, request)
    return JSONResponse(
        {
            "created": int(job.created),
            "background": "opaque",
            "data": [_datum(request, picture, links=links) for picture in pictures],
            "output_format": wanted.format,
            "size": service_of(request).model(wanted.model).checker.size,
            "usage": _usage(job),
        }
    )


def _datum(request: Request, picture: Picture, *, links: bool) -> dict[str, Any]:
    job, seed = picture.job, picture.job.request.seed_of(picture.index)
    if links:
        return {"url": str(request.url_for("image", number=job.id, index=picture.index)), "seed": seed}
    return {"b64_json": to_base64(picture.file), "seed": seed}


def _usage(job: Job) -> dict[str, Any]:
    """Tokens of the prompt; pictures are not counted in tokens here."""
    return {
        "input_tokens": job.tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": job.tokens},
        "output_tokens": 0,
        "total_tokens": job.tokens,
    }


async def _events(request: Request, job: Job, kind: str) -> AsyncIterator[bytes]:
    """Yield a job's previews, then its pictures; gives it up when the client goes away."""
    common = {
        "size": service_of(request).model(job.request.model).checker.size,
        "quality": "auto",
        "background": "opaque",
    }
    try:
        async for progress in job.progress():
            if progress.preview is None:
                yield KEEPALIVE_COMMENT
                continue
            yield _event(
                f"{kind}.partial_image",
                b64_json=to_base64(progress.preview),
                partial_image_index=progress.preview_number,
                picture_index=progress.index,
                output_format="jpeg",
                **common,
            )
        for picture in await job.result():
            yield _event(
                f"{kind}.completed",
                b64_json=to_base64(picture.file),
                picture_index=picture.index,
                seed=job.request.seed_of(picture.index),
                output_format=job.request.format,
                usage=_usage(job),
                **common,
            )
    except KoalaError as error:
        yield format_sse_event(event="error", data_str=json.dumps(error_body(error)))
    finally:
        service_of(request).cancel(job)


def _event(kind: str, **fields: Any) -> bytes:
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, "created_at": int(time.time()), **fields}))
