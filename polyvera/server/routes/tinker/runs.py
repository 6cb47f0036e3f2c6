"""Runs: made new or from weights, described and listed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from polyvera.adapter.method import method_named
from polyvera.errors import ServeError, SpecError
from polyvera.jobs.saved_weights import SAMPLER, TRAINING, SavedWeights
from polyvera.jobs.training_run import CREATE, LOAD_RUN, RunChoices, RunOperation, TrainingRun
from polyvera.server.catalog import BASE
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.tinker.bodies import CreateModelBody, LoadWeightsBody, ModelBody
from polyvera.server.routes.tinker.sessions import Limit, Offset, texts

KINDS = {TRAINING: "training", SAMPLER: "sampler"}
METHOD_KEY = "polyvera_method"  # of a run's metadata
OPTIMIZER = {"type": "adamw"}


def add_runs(router: APIRouter, context: ServerContext) -> None:
    """How runs begin, and what is told of them."""

    @router.post("/create_model")
    async def create_model(request: HttpRequest) -> dict[str, Any]:
        body, tenant = await context.body(request, CreateModelBody), caller_of(request).tenant
        check_base(context, body.base_model)
        lora, metadata = body.lora_config, dict(body.user_metadata)
        choices = RunChoices(lora.rank, lora.seed, method_of(metadata), lora.trained)
        given = (tenant, body.session_id, body.model_seq_id, CREATE, choices, metadata)
        create = context.training.operations.create_run
        return submitted(await context.run(request, create, *given))

    @router.post("/get_info")
    async def get_info(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, ModelBody)
        run = await context.run(request, context.training.runs.get, caller_of(request).tenant, body.model_id)
        base, tokenizer = context.catalog.base, tokenizer_of(context)
        arch = type(context.engine.model).__name__
        return {
            "type": "get_info",
            "model_data": {"arch": arch, "model_name": base, "tokenizer_id": tokenizer},
            "model_id": run.id,
            "model_name": base,
            "is_lora": True,
            "lora_rank": run.rank,
            "optimizer_config": OPTIMIZER,
        }

    _add_lists(router, context)


async def load_run(context: ServerContext, request: HttpRequest, body: LoadWeightsBody) -> dict[str, Any]:
    """A new run of a session, with the method, the rank and the state of what was saved."""
    training, tenant = context.training, caller_of(request).tenant
    if body.base_model is not None:
        check_base(context, body.base_model)
    saved = await context.run(request, training.weights.get, tenant, body.path)
    asked = {"path": body.path, "optimizer": body.optimizer}
    choices, metadata = RunChoices(saved.rank, None, saved.method), dict(body.user_metadata)
    given = (tenant, body.session_id, body.model_seq_id, LOAD_RUN, choices, metadata, asked)
    return submitted(await context.run(request, training.operations.create_run, *given))


def _add_lists(router: APIRouter, context: ServerContext) -> None:
    @router.get("/training_runs")
    async def training_runs(
        request: HttpRequest, limit: Limit = 20, offset: Offset = 0, access_scope: str = "owned"
    ) -> dict[str, Any]:
        check_scope(access_scope)
        training, tenant = context.training, caller_of(request).tenant
        found, total = await context.run(request, training.runs.list, tenant, limit, offset)
        runs = [await context.run(request, shown, context, run) for run in found]
        return {"training_runs": runs, "cursor": cursor(limit, offset, total)}

    @router.get("/training_runs/{id}")
    async def training_run(request: HttpRequest, id: str, access_scope: str = "owned") -> dict[str, Any]:
        check_scope(access_scope)
        run = await context.run(request, context.training.runs.get, caller_of(request).tenant, id)
        return await context.run(request, shown, context, run)

    @router.delete("/training_runs/{id}")
    async def end_run(request: HttpRequest, id: str) -> dict[str, Any]:
        await context.run(request, context.training.runs.end, caller_of(request).tenant, id)
        return {"training_run_id": id, "ended": True}


def shown(context: ServerContext, run: TrainingRun) -> dict[str, Any]:
    """A run as the SDK knows it."""
    last = {one.kind: shown_weights(one) for one in context.training.weights.last(run.tenant, run.id)}
    return {
        "training_run_id": run.id,
        "base_model": context.catalog.base,
        "model_owner": run.tenant,
        "is_lora": True,
        "lora_rank": run.rank,
        "last_request_time": when(run.seen_s),
        "last_checkpoint": last.get(TRAINING),
        "last_sampler_checkpoint": last.get(SAMPLER),
        "user_metadata": texts(run.metadata),
    }


def shown_weights(saved: SavedWeights) -> dict[str, Any]:
    """Weights as the SDK knows them."""
    return {
        "checkpoint_id": saved.checkpoint,
        "checkpoint_type": KINDS[saved.kind],
        "time": when(saved.created_s),
        "tinker_path": saved.path,
        "size_bytes": saved.num_bytes,
        "public": False,
        "user_metadata": dict(saved.metadata),
        "expires_at": None if saved.expires_s is None else when(saved.expires_s),
    }


def submitted(asked: RunOperation) -> dict[str, Any]:
    """What is answered at once to a call."""
    return {"request_id": asked.id, "model_id": asked.run}


def cursor(limit: int, offset: int, total: int) -> dict[str, int]:
    """Where a page of a list is."""
    return {"limit": limit, "offset": offset, "total_count": total}


def when(seconds: int) -> str:
    """ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def check_base(context: ServerContext, name: str) -> None:
    """Raises ServeError for another base than the one that is served."""
    if name not in (context.catalog.base, BASE, tokenizer_of(context)):
        raise ServeError(f"base_model: this server trains {context.catalog.base}, not {name[:200]!r}", "base_model")


def tokenizer_of(context: ServerContext) -> str | None:
    """The base's tokenizer, as transformers finds it."""
    return str(context.engine.tokenizer.name_or_path) or None


def check_scope(scope: str) -> None:
    """Raises ServeError for what is other tenants'."""
    if scope != "owned":
        raise ServeError(f"access_scope: must be 'owned', not {scope[:40]!r}: what is a tenant's is nobody else's")


def method_of(metadata: dict[str, Any]) -> str | None:
    """The method that a run's creator asks for, by its metadata. Raises ServeError."""
    name = metadata.get(METHOD_KEY)
    if name is None:
        return None
    if not isinstance(name, str):
        raise ServeError(f"user_metadata: {METHOD_KEY} must be the name of a method", "user_metadata")
    try:
        return method_named(name).name
    except SpecError as error:
        raise ServeError(f"user_metadata: {error}", "user_metadata") from None
