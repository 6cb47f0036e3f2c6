"""Scores: /v1/score and /v1/rerank, by the cosine of two texts' vectors, where an encoder is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor
from torch.nn import functional as F

from polyvera.server.context import ServerContext
from polyvera.server.requests import EmbeddingBody
from polyvera.server.routes.embeddings import Embedded, embedded
from polyvera.server.score_bodies import RerankBody, ScoreBody

SCORE_PATHS, RERANK_PATHS = ("/v1/score", "/score"), ("/v1/rerank", "/rerank", "/v2/rerank")


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints, each under the names that clients know."""
    router = APIRouter()

    async def score(request: HttpRequest) -> Response:
        body = await context.body(request, ScoreBody)
        num = len(body.firsts)
        found = await _vectors(context, request, body.model, [*body.firsts, *body.seconds])
        head = {"id": f"score-{request.state.request_id}", "object": "list", "created": context.started}
        tail = {"model": context.catalog.name_of(found.adapter), "usage": found.usage}
        return await context.json(request, lambda: {**head, **tail, "data": _scored(found, num)})

    async def rerank(request: HttpRequest) -> Response:
        body = await context.body(request, RerankBody)
        found = await _vectors(context, request, body.model, [body.query, *body.texts])
        model = context.catalog.name_of(found.adapter)
        head = {"id": f"rerank-{request.state.request_id}", "model": model, "usage": found.usage}
        return await context.json(request, lambda: {**head, "results": _ranked(found, body)})

    for paths, endpoint in ((SCORE_PATHS, score), (RERANK_PATHS, rerank)):
        for path in paths:
            router.add_api_route(path, endpoint, methods=["POST"])
    return router


def _scored(found: Embedded, num: int) -> list[dict[str, Any]]:
    values = cosines(found.vectors[:num], found.vectors[num:])
    return [{"object": "score", "index": i, "score": value} for i, value in enumerate(values)]


def _ranked(found: Embedded, body: RerankBody) -> list[dict[str, Any]]:
    values = cosines(found.vectors[:1], found.vectors[1:])
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[: body.top_n]
    return [{"index": i, "relevance_score": values[i]} | _document(body, i) for i in order]


def cosines(firsts: Tensor, seconds: Tensor) -> list[float]:
    """Of one vector with each of several, or of pairs; (1 or N, width) and (N, width)."""
    found: list[float] = (F.normalize(firsts.float(), dim=-1) * F.normalize(seconds.float(), dim=-1)).sum(-1).tolist()
    return found


async def _vectors(context: ServerContext, request: HttpRequest, model: str, texts: list[str]) -> Embedded:
    return await embedded(context, request, EmbeddingBody(model=model, input=texts))


def _document(body: RerankBody, i: int) -> dict[str, Any]:
    return {"document": {"text": body.texts[i]}} if body.return_documents else {}
