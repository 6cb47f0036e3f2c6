"""make_app: an engine behind OpenAI's HTTP API."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.engine.protocol import ServedEngine
from polyvera.errors import PolyveraError
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.server.api_keys import KeyFile, read_keys
from polyvera.server.catalog import Catalog
from polyvera.server.config import ServerConfig
from polyvera.server.context import ServerContext, TenantQuotas
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import AuthMiddleware, ServerState
from polyvera.server.routes import adapters, completions, embeddings, files, models, operations
from polyvera.server.routes import fine_tuning as jobs

PAGE = resources.files("polyvera.server").joinpath("page")
PAGE_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(
    engine: ServedEngine,
    config: ServerConfig,
    metrics: Metrics | None = None,
    state: ServerState | None = None,
    fine_tuning: FineTuning | None = None,
) -> FastAPI:
    """The app of a started engine: a Generator, an Embedder, or a ReplicaPool.

    metrics: whose observe() the engine was given, for the times that it measures. state: to say that the server stops.
    fine_tuning: the files and jobs of a server that trains.
    Raises ServeError for a file of keys that cannot be read.
    """
    state, metrics = state or ServerState(), metrics or Metrics()
    keys = None
    if config.keys is not None:
        read_keys(config.keys)
        keys = KeyFile(config.keys)
    metrics.watch(engine.stats)
    catalog = Catalog(engine.registry, config.base, engine.fingerprint)
    context = ServerContext(
        engine, config, catalog, metrics, state, TenantQuotas(config.max_per_tenant), keys, fine_tuning
    )
    auth = Middleware(AuthMiddleware, config=config, keys=keys, state=state, metrics=metrics)
    app = FastAPI(title="polyvera", docs_url=None, redoc_url=None, openapi_url=None, middleware=[auth])
    for router in (completions, models, operations, embeddings, files, jobs):
        app.include_router(router.routes(context))
    app.include_router(adapters.routes(context, engine.fingerprint))
    _add_page(app)
    _add_errors(app, metrics)
    return app


def _add_page(app: FastAPI) -> None:
    for file in PAGE.iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        kind = PAGE_KINDS.get(PurePath(file.name).suffix)
        if kind is not None:
            app.add_api_route(path, _sender(file.read_bytes(), kind), methods=["GET"])


def _sender(data: bytes, kind: str) -> Any:
    async def send() -> Response:
        return Response(data, media_type=kind, headers=PAGE_HEADERS)

    return send


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """One way for all errors."""

    async def failed(request: HttpRequest, error: Exception) -> Response:
        return metrics.failed(error, request.state.request_id).response()

    for kind in (PolyveraError, ValidationError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, failed)
