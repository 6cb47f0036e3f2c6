"""Models: /v1/models, the base and the adapters that a caller can name."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from polyvera.errors import AccessError
from polyvera.server.api_keys import Caller
from polyvera.server.context import Front, caller_of
from polyvera.store.reference import AdapterRef

WRITING = ["/v1/chat/completions", "/v1/completions"]
READING = ["/v1/embeddings", "/v1/classify"]


def routes(front: Front) -> APIRouter:
    """The list, and one of it."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: HttpRequest) -> dict[str, Any]:
        return {"object": "list", "data": await asyncio.to_thread(_all, front, caller_of(request))}

    @router.get("/v1/models/{model:path}")
    async def model(request: HttpRequest, model: str) -> dict[str, Any]:
        return await asyncio.to_thread(_one, front, caller_of(request), model)

    return router


def _all(front: Front, caller: Caller) -> list[dict[str, Any]]:
    base = [_base(front)] if caller.base else []
    return base + [_adapter(front, ref, ref.name) for ref in front.catalog.names(caller)]


def _one(front: Front, caller: Caller, model: str) -> dict[str, Any]:
    try:
        ref = front.catalog.resolve(caller, model)
    except AccessError:
        return _base(front)  # every adapter's parent: no secret
    return _base(front) if ref is None else _adapter(front, ref, model)


def _base(front: Front) -> dict[str, Any]:
    name = front.catalog.base
    return {"id": name, "object": "model", "created": front.started, "owned_by": "polyvera", "root": name} | {
        "max_model_len": front.engine.max_context,
        "answers": WRITING if front.writes else READING,
    }


def _adapter(front: Front, ref: AdapterRef, name: str) -> dict[str, Any]:
    facts = front.catalog.facts(ref)
    told = {"id": name, "object": "model", "created": 0 if facts is None else facts.created_s, "owned_by": "polyvera"}
    return told | {
        "root": str(ref),
        "parent": front.catalog.base,
        "bytes": ref.num_bytes,
        "scores": {} if facts is None else facts.scores,
    }
