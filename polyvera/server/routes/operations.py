"""Operations: tokens, health, versions, metrics, and what the engine does at the moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.stats import RunningRequest
from polyvera.errors import PolyveraError
from polyvera.model.prompt import bare_ids, chat_ids, ids_text, passage, prompt_ids
from polyvera.model.tool_formats import format_of, told
from polyvera.server.api_keys import Caller
from polyvera.server.catalog import BASE
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.prompt_tokens import check_chars, check_messages, check_tokens
from polyvera.server.requests import ChatMessage, DetokenizeBody, TokenizeBody, messages_of

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

    @router.post("/tokenize")
    async def tokenize(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, TokenizeBody)
        await _check_model(context, request, body.model)
        if body.messages is not None:
            ids = await context.compute(request, _chat_ids, context, body.messages, body.add_generation_prompt)
        else:
            assert body.prompt is not None
            check_chars([body.prompt], context.engine.max_context, "prompt")
            ids = await context.compute(request, _text_ids, context, body.prompt, special=body.add_special_tokens)
        return {"count": len(ids), "max_model_len": context.engine.max_context, "tokens": ids}

    @router.post("/detokenize")
    async def detokenize(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, DetokenizeBody)
        await _check_model(context, request, body.model)
        check_tokens(len(body.tokens), 0, context.engine.max_context, "tokens")
        return {"prompt": await context.compute(request, ids_text, tokenizer, body.tokens, len(tokenizer))}


def _chat_ids(context: ServerContext, several: Sequence[ChatMessage], answer_next: bool) -> list[int]:
    """The tokens of a conversation without tools."""
    tokenizer, most = context.engine.tokenizer, context.engine.max_context
    messages, _ = told(format_of(tokenizer.chat_template), messages_of(several), (), most)
    check_messages(messages, most)
    return chat_ids(tokenizer, messages, answer_next=answer_next)


def _text_ids(context: ServerContext, text: str, *, special: bool) -> list[int]:
    """The tokens of a text as the route that takes it would make them, or nothing but the text's."""
    tokenizer = context.engine.tokenizer
    if not special:
        return bare_ids(tokenizer, text)
    return (
        prompt_ids(tokenizer, text) if context.engine.embedding is None else list(passage(tokenizer, text)["input_ids"])
    )


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
