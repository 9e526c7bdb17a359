"""The application: models, and the protocols that clients speak to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from koala_bundle import __version__
from koala_serve.checking import RequestChecker
from koala_serve.gate import Gate
from koala_serve.metrics import Metrics
from koala_serve.model import Model
from koala_serve.replies import add_handlers
from koala_serve.routes import a1111, health, jobs, openai, page
from koala_serve.service import Service
from koala_serve.settings import Settings
from koala_serve.worker import Worker


def create_app(
    bundles: Mapping[str, Path],
    make_workers: Callable[[str, Path], Sequence[Worker]],
    settings: Settings | None = None,
) -> FastAPI:
    """Return an ASGI application that serves ``bundles`` by name; ``make_workers`` makes those of a bundle.

    ``app.state.service`` is its Service. Raises BundleError for a bundle that is damaged.
    """
    settings = settings or Settings()
    metrics = Metrics()
    models = [
        Model(name, RequestChecker(path, settings), make_workers(name, path), settings, metrics)
        for name, path in bundles.items()
    ]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for model in models:
            model.start()
        try:
            yield
        finally:
            for model in models:
                await model.close()

    app = FastAPI(
        title="koala-trt",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # the page that shows it would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = Service(models, settings, metrics)
    app.state.a1111_model, app.state.a1111_previews, app.state.a1111_jobs = None, False, {}
    for routes in (openai, a1111, jobs, health, page):
        app.include_router(routes.router)
    add_handlers(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.body)
    app.add_middleware(Gate, settings=settings)
    return app
