"""Vectors: /v1/embeddings and /v1/classify, where an encoder is served."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor
from torch.nn import functional as F

from polyvera.errors import SamplingError
from polyvera.model.answer import Meaning, trained_meaning
from polyvera.model.task import SCORE
from polyvera.server.answers import while_there
from polyvera.server.classification import classified_texts, cosines, worded
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.prompt_tokens import text_tokens
from polyvera.server.requests import ClassifyBody, EmbeddingBody, VectorBody
from polyvera.server.responses import Json
from polyvera.store.reference import AdapterRef


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: HttpRequest) -> Response:
        found = await embedded(context, request, body := await context.body(request, EmbeddingBody))
        return await context.json(request, lambda: _told(context, body, found))

    @router.post("/v1/classify")
    async def classify(request: HttpRequest) -> Response:
        engine, body = context.embedding, await context.body(request, ClassifyBody)
        adapter = await _adapter(context, request, body)
        meaning = await context.run(request, _meaning, context, adapter)
        if meaning.row.embeds and body.text_pair is not None:
            rows = await _rows(context, request, body, lambda: [*body.prompts, *_pairs(body)])
            vectors = await while_there(request, _read(context, request, rows, adapter, engine.embed))
            labels, data = SCORE, partial(cosines, vectors)
        else:
            texts = await context.read(request, classified_texts, partial(_classified, context, meaning, body))
            rows = [text.tokens for text in texts]
            found = await while_there(request, _read(context, request, rows, adapter, engine.classify))
            labels, data = found.labels, partial(worded, found, texts)
        head = {"id": f"classify-{request.state.request_id}", "object": "list", "created": context.started}
        tail = {"model": context.catalog.name_of(adapter), "labels": list(labels), "usage": _usage(rows)}
        return await context.json(request, lambda: {**head, **tail, "data": data()})

    return router


@dataclass(frozen=True, slots=True)
class Embedded:
    """Texts as vectors, (texts, width) in fp32."""

    adapter: AdapterRef | None
    rows: list[list[int]]
    vectors: Tensor

    @property
    def usage(self) -> dict[str, int]:
        """Tokens."""
        return _usage(self.rows)


async def embedded(context: ServerContext, request: HttpRequest, body: EmbeddingBody) -> Embedded:
    """The vectors of a body's texts, of the dimensions that it asks for."""
    engine = context.embedding
    adapter = await _adapter(context, request, body)
    rows = await _rows(context, request, body, lambda: list(body.prompts))
    found: Tensor = await while_there(request, _read(context, request, rows, adapter, engine.embed))
    return Embedded(adapter, rows, _cut(context, found, body.dimensions))


def _cut(context: ServerContext, vectors: Tensor, dimensions: int | None) -> Tensor:
    """The first of them, normalised again, where the model is made for it. Raises SamplingError where it is not."""
    width = vectors.shape[-1]
    if dimensions in (None, width):
        return vectors
    config = context.engine.model.config
    allowed = getattr(config, "matryoshka_dimensions", None) or ()
    is_any = bool(getattr(config, "is_matryoshka", False)) and not allowed
    if dimensions not in allowed and not (is_any and dimensions < width):
        known = ", ".join(map(str, (*allowed, width)))
        raise SamplingError(f"dimensions: this model's vectors have {known} dimensions, not {dimensions}", "dimensions")
    return F.normalize(vectors[:, :dimensions], dim=-1)


async def _rows(
    context: ServerContext, request: HttpRequest, body: VectorBody, prompts: Callable[[], list[Any]]
) -> list[list[int]]:
    """The tokens of prompts."""

    def given() -> dict[str, Any]:
        return {"prompts": prompts(), "max_context": context.engine.max_context, "cut": _kept(context, body)}

    if any(isinstance(prompt, str) for prompt in body.prompts):
        return await context.read(request, text_tokens, given)
    return await context.compute(request, lambda: text_tokens(None, **given()))


async def _adapter(context: ServerContext, request: HttpRequest, body: VectorBody) -> AdapterRef | None:
    if not body.prompts:
        raise SamplingError("input: the list is empty", "input")
    found: AdapterRef | None = await context.run(request, context.catalog.resolve, caller_of(request), body.model)
    return found


def _kept(context: ServerContext, body: VectorBody) -> int | None:
    """The tokens that are kept of each text, where it was asked for."""
    cut = body.truncate_prompt_tokens
    return context.engine.max_context if cut == -1 else cut


def _meaning(context: ServerContext, adapter: AdapterRef | None) -> Meaning:
    """What the adapter is for; the head of its base where it has no task of its own."""
    facts = None if adapter is None else context.catalog.facts(adapter)
    has_own = facts is not None and (facts.labels or facts.meaning.row.embeds)
    return facts.meaning if facts is not None and has_own else trained_meaning(context.engine.model)


def _pairs(body: ClassifyBody) -> list[str | None]:
    """The second text of each prompt. Raises SamplingError where their numbers differ, or an input is no text."""
    given = [body.text_pair] if isinstance(body.text_pair, str) else body.text_pair
    if given is None:
        return [None] * len(body.prompts)
    if len(given) != len(body.prompts) or not all(isinstance(prompt, str) for prompt in body.prompts):
        raise SamplingError(
            f"text_pair: {len(given)} texts for {len(body.prompts)} inputs; give one for each, which is a text too",
            "text_pair",
        )
    return list(given)


def _classified(context: ServerContext, meaning: Meaning, body: ClassifyBody) -> dict[str, Any]:
    most, cut = context.engine.max_context, _kept(context, body)
    return {"prompts": body.prompts, "pairs": _pairs(body), "meaning": meaning, "max_context": most, "cut": cut}


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


def _told(context: ServerContext, body: EmbeddingBody, found: Embedded) -> Json:
    worded: Any = _as_base64 if body.encoding_format == "base64" else np.ndarray.tolist
    data = [{"object": "embedding", "index": i, "embedding": worded(v)} for i, v in enumerate(found.vectors.numpy())]
    return {"object": "list", "data": data, "model": context.catalog.name_of(found.adapter), "usage": found.usage}


def _as_base64(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _usage(rows: list[list[int]]) -> dict[str, int]:
    num = sum(map(len, rows))
    return {"prompt_tokens": num, "total_tokens": num}
