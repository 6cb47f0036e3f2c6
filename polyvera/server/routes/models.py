"""Models: /v1/models, the base and the adapters that a caller can name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.errors import AccessError, NotFoundError
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of
from polyvera.store.reference import AdapterRef

WRITING = ["/v1/chat/completions", "/v1/completions"]
READING = ["/v1/embeddings", "/v1/classify"]


def routes(context: ServerContext) -> APIRouter:
    """The list, and one of it."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: HttpRequest) -> Response:
        found = await context.run(request, _all, context, caller_of(request))
        return await context.json(request, lambda: {"object": "list", "data": found})

    @router.get("/v1/models/{model:path}")
    async def model(request: HttpRequest, model: str) -> dict[str, Any]:
        return await context.run(request, _one, context, caller_of(request), model)

    return router


def _all(context: ServerContext, caller: Caller) -> list[dict[str, Any]]:
    base = [_base(context)] if caller.base else []
    catalog = context.catalog
    served = (ref for ref in catalog.names(caller) if catalog.is_servable(ref) and catalog.facts(ref) is not None)
    return base + [_adapter(context, ref, ref.name) for ref in served]


def _one(context: ServerContext, caller: Caller, model: str) -> dict[str, Any]:
    try:
        ref = context.catalog.resolve(caller, model)
    except AccessError:
        return _base(context)  # every adapter's parent: no secret
    if ref is not None and not context.catalog.is_servable(ref):
        raise NotFoundError(f"The model {model[:200]!r} cannot be served: {ref} is an adapter of another base model.")
    return _base(context) if ref is None else _adapter(context, ref, model)


def _base(context: ServerContext) -> dict[str, Any]:
    name = context.catalog.base
    return {"id": name, "object": "model", "created": context.started, "owned_by": "polyvera", "root": name} | {
        "max_model_len": context.engine.max_context,
        "answers": READING if context.engine.generation is None else WRITING,
    }


def _adapter(context: ServerContext, ref: AdapterRef, name: str) -> dict[str, Any]:
    facts = context.catalog.facts(ref)
    told = {"id": name, "object": "model", "created": 0 if facts is None else facts.created_s, "owned_by": "polyvera"}
    return (
        told
        | {
            "root": str(ref),
            "parent": context.catalog.base,
            "bytes": ref.num_bytes,
            "scores": {} if facts is None else facts.scores,
        }
        | ({"prompt_form": facts.prompt_form} if facts is not None and facts.prompt_form else {})
    )
