"""Waiting for a job as long as its client does."""

from __future__ import annotations

import asyncio

from fastapi import Request

from koala_serve.job import Job, Picture
from koala_serve.service import Service


def service_of(request: Request) -> Service:
    """Return the service of the application that got ``request``."""
    service: Service = request.app.state.service
    return service


async def pictures_of(job: Job, request: Request) -> list[Picture]:
    """Return the pictures of a job; gives it up when the client goes away. Raises KoalaError if there are none."""
    result = asyncio.create_task(job.result())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            service_of(request).cancel(job)
        return await result
    finally:
        gone.cancel()


def describe(request: Request, job: Job) -> None:
    """Add to the request's line in the log what was asked for."""
    wanted = job.request
    request.state.note.update(model=wanted.model, job=job.id, n=wanted.count, seed=wanted.seed)
    if service_of(request).settings.log_prompts:
        request.state.note.update(prompt=wanted.prompt, negative_prompt=wanted.negative_prompt)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
