"""Operations: tokens, health, versions, metrics, and what the engine does at the moment."""

from __future__ import annotations

import logging
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.stats import RunningRequest
from polyvera.errors import PolyveraError
from polyvera.model.prompt import bare_ids, chat_ids, ids_text, prompt_ids
from polyvera.model.tool_formats import format_of, told
from polyvera.server.api_keys import Caller
from polyvera.server.catalog import BASE
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.prompt_tokens import check_chars, check_messages, check_tokens, passage_ids
from polyvera.server.requests import DetokenizeBody, TokenizeBody, messages_of

READY = "\0ready"  # the line of its checks, no tenant's
log = logging.getLogger(__name__)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def routes(context: ServerContext) -> APIRouter:
    """All of them."""
    router = APIRouter()
    _add_tokens(router, context)
    _add_health(router, context)

    @router.get("/metrics")
    async def metrics(request: HttpRequest) -> Response:
        caller_of(request).check_admin()
        return Response(await context.run(request, context.metrics.text), media_type=METRICS_TYPE)

    @router.get("/v1/live")
    async def live(request: HttpRequest) -> dict[str, Any]:
        return await context.run(request, _live, context, caller_of(request))

    return router


def _add_tokens(router: APIRouter, context: ServerContext) -> None:
    tokenizer = context.engine.tokenizer
    as_prompt = prompt_ids if context.engine.embedding is None else passage_ids

    @router.post("/tokenize")
    async def tokenize(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, TokenizeBody)
        await _check_model(context, request, body.model)
        if body.messages is not None:
            ids = await context.read(request, chat_ids, partial(_conversation, context, body))
        else:
            text = body.prompt or ""
            check_chars([text], context.engine.max_context, "prompt")
            work, name = (as_prompt, "prompt") if body.add_special_tokens else (bare_ids, "text")
            ids = await context.read(request, work, lambda: {name: text})
        return {"count": len(ids), "max_model_len": context.engine.max_context, "tokens": ids}

    @router.post("/detokenize")
    async def detokenize(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, DetokenizeBody)
        await _check_model(context, request, body.model)
        check_tokens(len(body.tokens), 0, context.engine.max_context, "tokens")
        return {"prompt": await context.compute(request, ids_text, tokenizer, body.tokens, len(tokenizer))}


def _conversation(context: ServerContext, body: TokenizeBody) -> dict[str, Any]:
    """A conversation without tools, as the template is given it. Raises ContextLengthError."""
    most, form = context.engine.max_context, format_of(context.engine.tokenizer.chat_template)
    messages, _ = told(form, messages_of(body.messages or ()), (), most)
    check_messages(messages, most)
    return {"messages": messages, "answer_next": body.add_generation_prompt}


async def _check_model(context: ServerContext, request: HttpRequest, model: str | None) -> None:
    """All of them share one tokenizer, so that the base needs no right."""
    if model not in (None, BASE, context.catalog.base):
        await context.run(request, context.catalog.resolve, caller_of(request), str(model))


def _add_health(router: APIRouter, context: ServerContext) -> None:
    @router.get("/health")
    async def health() -> Response:
        return _health(context, "ok")

    @router.get("/ready")
    async def ready() -> Response:
        if context.state.is_draining:
            return JSONResponse({"status": "stopping"}, 503)
        try:
            await context.pool.run(READY, _check_files, context)
        except PolyveraError as error:
            log.error("not ready: %s", error)
            return JSONResponse({"status": "keys or store unavailable"}, 503)
        return _health(context, "ready")

    @router.get("/version")
    async def own_version() -> dict[str, str]:
        return {"version": version("polyvera")}


def _check_files(context: ServerContext) -> None:
    """Raises PolyveraError where the store or the keys cannot be read."""
    context.catalog.check_store()
    if context.keys is not None:
        context.keys.keys()


def _health(context: ServerContext, word: str) -> Response:
    if context.engine.failed is None:
        return JSONResponse({"status": word})
    return JSONResponse({"status": "failed"}, 503)


def _live(context: ServerContext, caller: Caller) -> dict[str, Any]:
    """What runs and is resident; names out of scope are counted only."""
    stats, limits = context.engine.stats(), context.engine.limits
    seen = [one for one in stats.resident if caller.sees(one.adapter.partition("@")[0])]
    told: dict[str, Any] = {
        "max_rows": limits.max_rows,
        "num_slots": stats.num_slots,
        "waiting": stats.waiting,
        "running": [
            {"adapter": r.adapter or BASE, "num_tokens": r.num_tokens} for r in stats.running if _is_own(caller, r)
        ],
        "hidden_running": sum(not _is_own(caller, r) for r in stats.running),
        "resident": [
            {"adapter": one.adapter, "bytes": one.num_bytes, "users": one.num_users, "is_pinned": one.is_pinned}
            for one in seen
        ],
        "hidden_resident": len(stats.resident) - len(seen),
    }
    return told | ({"totals": dict(stats.totals)} if caller.admin else {})


def _is_own(caller: Caller, row: RunningRequest) -> bool:
    """Whether a caller may watch a row: its own tenant's, or any for an operator's key."""
    return row.tenant == caller.tenant or "*" in caller.adapters
