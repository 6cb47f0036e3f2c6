"""make_app: an engine behind OpenAI's HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.engine.protocol import ServedEngine
from polyvera.errors import PolyveraError
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.server.admission import Admission
from polyvera.server.api_keys import KeyFile, read_keys
from polyvera.server.audit_log import AuditLog
from polyvera.server.catalog import Catalog
from polyvera.server.config import ServerConfig
from polyvera.server.context import ServerContext
from polyvera.server.http_customs import HttpCustoms
from polyvera.server.json_lines import JsonLines, QueuedLines
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import PAGES, AuthMiddleware, ServerState
from polyvera.server.openapi import describe
from polyvera.server.rate_limits import RateLimits
from polyvera.server.routes import (
    adapters,
    aliases,
    completions,
    embeddings,
    files,
    history,
    messages,
    models,
    operations,
    responses,
    scores,
    uploads,
    versions,
)
from polyvera.server.routes import fine_tuning as jobs
from polyvera.server.routes import usage as usage_routes
from polyvera.server.routes.tinker import router as tinker
from polyvera.server.tracing import RequestTracer, tracer_to
from polyvera.server.usage import UsageStore, open_usage

MIN_GZIP_BYTES, GZIP_LEVEL = 1024, 5
EXPOSED = ["x-request-id", "retry-after"]
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
    usage: UsageStore | None = None,
    fine_tuning: FineTuning | None = None,
) -> FastAPI:
    """The app of a started engine: a Generator, an Embedder, or a ReplicaPool.

    metrics: whose observe() the engine was given, for the times that it measures. state: to say that the server stops.
    usage: by default in config.usage, or beside the store's folder. fine_tuning: the files and jobs of a server that
    trains. Raises ServeError for a file of keys or of usage that cannot be read.
    """
    state, metrics, audit = state or ServerState(), metrics or Metrics(), AuditLog(config.audit_log)
    usage = usage or open_usage(config.usage, None if engine.registry is None else engine.registry.url)
    keys = None if config.keys is None else KeyFile(config.keys, audit.keys_changed)
    metrics.watch(engine.stats, engine.limits.max_rows)
    catalog = Catalog(engine.registry, config.base, engine.fingerprint)
    state.reloads.append(catalog.forget)
    if keys is not None:
        read_keys(keys.path)
        state.reloads.append(keys.reload)
    limits, rates = engine.limits, RateLimits(usage.tokens_today)
    admission = Admission(config.max_per_tenant, limits.max_waiting, max(limits.max_waiting, limits.max_rows))
    stores: dict[str, Any] = {"usage": usage, "rates": rates, "audit": audit, "fine_tuning": fine_tuning}
    context = ServerContext(engine, config, catalog, metrics, state, admission, keys, **stores)
    lines, tracer = QueuedLines(JsonLines()) if config.access_log else None, tracer_to(config.otlp_traces_endpoint)
    passed: dict[str, Any] = {"config": config, "keys": keys, "state": state, "metrics": metrics, "rates": rates}
    app = FastAPI(
        title="polyvera",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[*_customs(config), Middleware(AuthMiddleware, **passed, lines=lines, tracer=tracer)],
        lifespan=_closing(context, lines, tracer),
    )
    texts = (completions, responses, messages, embeddings, scores)
    for router in (*texts, models, operations, usage_routes, history, versions, aliases, files, uploads, jobs, tinker):
        app.include_router(router.routes(context))
    app.include_router(adapters.routes(context, engine.fingerprint))
    _add_description(app)
    _add_page(app)
    _add_errors(app, metrics)
    return app


def _customs(config: ServerConfig) -> list[Middleware]:
    """What stands before the keys: a browser's question whether it may call has none."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.allow_origin,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    zipped = Middleware(GZipMiddleware, minimum_size=MIN_GZIP_BYTES, compresslevel=GZIP_LEVEL)
    return [*([cors] if config.allow_origin else []), zipped, Middleware(HttpCustoms, root_path=config.root_path)]


def _add_description(app: FastAPI) -> None:
    document = describe(app, version("polyvera"))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return document


def _closing(context: ServerContext, lines: QueuedLines | None, tracer: RequestTracer | None) -> Any:
    """What ends with the app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for pool in (context.pool, context.computing, context.compiling, context.writing):
            pool.close()
        await asyncio.to_thread(context.tokenizing.close)
        await asyncio.to_thread(context.usage.close)
        if lines is not None:
            await asyncio.to_thread(lines.flush)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    return lifespan


def _add_page(app: FastAPI) -> None:
    for file in PAGE.iterdir():
        path = PAGES.get(file.name, f"/page/{file.name}")
        kind = PAGE_KINDS.get(PurePath(file.name).suffix)
        if kind is not None:
            app.add_api_route(path, _sender(file.read_bytes(), kind), methods=["GET"], include_in_schema=False)


def _sender(data: bytes, kind: str) -> Any:
    async def send() -> Response:
        return Response(data, media_type=kind, headers=PAGE_HEADERS)

    return send


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    """One way for all errors."""

    async def failed(request: HttpRequest, error: Exception) -> Response:
        return metrics.failed(error, request.state.request_id).response(request.scope["path"])

    for kind in (PolyveraError, ValidationError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, failed)
