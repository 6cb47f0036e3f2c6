"""Vectors: /v1/embeddings and /v1/classify, where an encoder is served."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from polyvera.errors import SamplingError
from polyvera.model.prompt import passage
from polyvera.server.answers import while_there
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.prompt_tokens import check_chars, check_tokens
from polyvera.server.requests import ClassifyBody, EmbeddingBody
from polyvera.store.reference import AdapterRef


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: HttpRequest) -> dict[str, Any]:
        engine, body = context.embedding, await context.body(request, EmbeddingBody)
        adapter, rows = await _asked(context, request, body)
        found = await _done(context, request, rows, adapter, engine.embed)
        worded: Any = _as_base64 if body.encoding_format == "base64" else np.ndarray.tolist
        data = [{"object": "embedding", "index": i, "embedding": worded(v)} for i, v in enumerate(found.numpy())]
        return {"object": "list", "data": data, "model": context.catalog.name_of(adapter), "usage": _usage(rows)}

    @router.post("/v1/classify")
    async def classify(request: HttpRequest) -> dict[str, Any]:
        engine, body = context.embedding, await context.body(request, ClassifyBody)
        adapter, rows = await _asked(context, request, body)
        found = await _done(context, request, rows, adapter, engine.classify)
        data = [
            {"index": i, "label": found.labels[int(p.argmax())], "probs": p.tolist(), "num_classes": len(p)}
            for i, p in enumerate(found.probs.numpy())
        ]
        return {
            "id": f"classify-{request.state.request_id}",
            "object": "list",
            "created": context.started,
            "model": context.catalog.name_of(adapter),
            "labels": list(found.labels),
            "data": data,
            "usage": _usage(rows),
        }

    return router


async def _asked(
    context: ServerContext, request: HttpRequest, body: EmbeddingBody
) -> tuple[AdapterRef | None, list[list[int]]]:
    prompts = body.prompts
    if not prompts:
        raise SamplingError("input: the list is empty", "input")
    adapter = await context.run(request, context.catalog.resolve, caller_of(request), body.model)
    return adapter, await context.run(request, _rows, context.engine.tokenizer, prompts, context.engine.max_context)


def _rows(tokenizer: Any, prompts: Sequence[str | list[int]], max_context: int) -> list[list[int]]:
    check_chars((p for p in prompts if isinstance(p, str)), max_context, "input")
    rows = [p if isinstance(p, list) else passage(tokenizer, p)["input_ids"] for p in prompts]
    check_tokens(max(map(len, rows)), 0, max_context, "input")
    return rows


async def _done(
    context: ServerContext,
    request: HttpRequest,
    rows: list[list[int]],
    adapter: AdapterRef | None,
    ask: Callable[..., Future[Any]],
) -> Any:
    return await while_there(request, _read(context, request, rows, adapter, ask))


async def _read(
    context: ServerContext,
    request: HttpRequest,
    rows: list[list[int]],
    adapter: AdapterRef | None,
    ask: Callable[..., Future[Any]],
) -> Any:
    """What the engine finds, when it is the tenant's turn."""
    caller, num = caller_of(request), sum(map(len, rows))
    async with context.admission.place(caller, 1):
        with context.rates.reserve(caller, num) as reservation:
            asked = partial(ask, rows, adapter, tenant=caller.tenant, weight=caller.weight)
            future = await context.run(request, asked)
            found = await asyncio.wrap_future(future)
            reservation.num_spent = num
            context.count(caller, adapter, num, 0)
    return found


def _as_base64(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _usage(rows: list[list[int]]) -> dict[str, int]:
    num = sum(map(len, rows))
    return {"prompt_tokens": num, "total_tokens": num}
