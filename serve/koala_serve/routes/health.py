"""What machines ask: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from koala_serve.routes.waiting import service_of

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the server runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Say whether every model can be drawn: 200, or 503 with what is missing."""
    service = service_of(request)
    models = {
        name: "ready" if model.is_ready else "opening" if model.problem is None else str(model.problem)
        for name, model in service.models.items()
    }
    status: dict[str, Any] = {"status": "stopping" if service.is_stopping else "ok", "models": models}
    return JSONResponse(status, 200 if service.is_ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the counters for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
