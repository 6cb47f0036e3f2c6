"""Fine-tuning jobs, their events and their checkpoints, as OpenAI's API has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from polyvera.errors import ServeError
from polyvera.jobs.fine_tuning_job import ACTIVE, DPO, SUCCEEDED, FineTuningJob, JobCheckpoint, JobEvent
from polyvera.server.catalog import BASE
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.job_requests import AUTO, MAX_PAGE, FineTuningBody
from polyvera.server.responses import page_of

JOBS = "/v1/fine_tuning/jobs"
POLL_S = 0.5
EVENT, CHECKPOINT = "ftevent-", "ftckpt-"
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def routes(context: ServerContext) -> APIRouter:
    """The routes under /v1/fine_tuning."""
    router = APIRouter()
    _add_jobs(router, context)
    for verb in ("cancel", "pause", "resume"):
        router.add_api_route(f"{JOBS}/{{id}}/{verb}", _mover(context, verb), methods=["POST"])
    _add_history(router, context)
    return router


def _add_jobs(router: APIRouter, context: ServerContext) -> None:
    @router.post(JOBS)
    async def create(request: HttpRequest) -> dict[str, Any]:
        tuning = context.training
        body, tenant = await context.body(request, FineTuningBody), caller_of(request).tenant
        _check(context, body)
        given = (tenant, context.catalog.base, body.training_file, body.validation_file, body.choices)
        return shown(await context.run(request, tuning.jobs.create, *given))

    @router.get(JOBS)
    async def listed(request: HttpRequest, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
        jobs, tenant = context.training.jobs, caller_of(request).tenant
        found = await context.run(request, jobs.list, tenant, limit + 1, after)
        return page_of([shown(job) for job in found[:limit]], has_more=len(found) > limit)

    @router.get("/v1/fine_tuning/curves")
    async def curves(request: HttpRequest, limit: Limit = 20) -> dict[str, Any]:
        found, tenant = context.training.curves, caller_of(request).tenant
        several = await context.run(request, lambda: [*found.jobs(tenant, limit), *found.runs(tenant, limit)])
        return {"object": "list", "data": [asdict(one) for one in several]}

    @router.get(JOBS + "/{id}")
    async def retrieved(request: HttpRequest, id: str) -> dict[str, Any]:
        return shown(await context.run(request, context.training.jobs.get, caller_of(request).tenant, id))


def _mover(context: ServerContext, verb: str) -> Callable[..., Any]:
    async def move(request: HttpRequest, id: str) -> dict[str, Any]:
        return shown(await context.run(request, context.training.jobs.move, caller_of(request).tenant, id, verb))

    return move


def _add_history(router: APIRouter, context: ServerContext) -> None:
    @router.get(JOBS + "/{id}/events")
    async def events(
        request: HttpRequest, id: str, limit: Limit = 20, after: str | None = None, stream: bool = False
    ) -> Any:
        jobs, tenant = context.training.jobs, caller_of(request).tenant
        if stream:
            await context.run(request, jobs.get, tenant, id)
            return await _streamed(context, request, id)
        found = await context.run(request, jobs.events, tenant, id, limit + 1, _number(after, EVENT))
        return page_of([_shown_event(event) for event in found[:limit]], has_more=len(found) > limit)

    @router.get(JOBS + "/{id}/checkpoints")
    async def checkpoints(request: HttpRequest, id: str, limit: Limit = 10, after: str | None = None) -> Any:
        jobs, tenant = context.training.jobs, caller_of(request).tenant
        found = await context.run(request, jobs.checkpoints, tenant, id, limit + 1, _number(after, CHECKPOINT))
        return page_of([_shown_checkpoint(one) for one in found[:limit]], has_more=len(found) > limit)


async def _streamed(context: ServerContext, request: HttpRequest, id: str) -> Response:
    """A job's events as they come, the oldest first, until it has ended."""
    jobs, caller = context.training.jobs, caller_of(request)

    async def lines() -> AsyncIterator[str]:
        async with context.admission.place(caller, 1):
            seen, is_open = 0, True
            while is_open and not context.state.is_draining:
                is_open = (await context.run(request, jobs.get, caller.tenant, id)).status in ACTIVE
                while found := await context.run(request, jobs.events_since, caller.tenant, id, seen, MAX_PAGE):
                    seen = found[-1].number
                    for event in found:
                        yield f"data: {json.dumps(_shown_event(event))}\n\n"
                if is_open:
                    await asyncio.sleep(POLL_S)
            yield "data: [DONE]\n\n"

    rest = lines()
    first = await anext(rest)  # what refuses a stream does so before its head is sent

    async def whole() -> AsyncIterator[str]:
        yield first
        async for line in rest:
            yield line

    return StreamingResponse(whole(), media_type="text/event-stream")


def _check(context: ServerContext, body: FineTuningBody) -> None:
    """Raises ServeError for a model or a number of epochs that this server does not train."""
    if body.model not in (BASE, context.catalog.base):
        raise ServeError(f"model: this server fine-tunes {context.catalog.base}, not {body.model[:200]!r}", "model")
    epochs, most = body.chosen.n_epochs, context.training.policy.max_epochs
    if epochs != AUTO and int(epochs) > most:
        raise ServeError(f"n_epochs: must be at most {most} on this server", "method")


def _number(after: str | None, prefix: str) -> int | None:
    """The number of the last item of a page. Raises ServeError for what is no id of such an item."""
    if after is None:
        return None
    number = after.removeprefix(prefix)
    if not (after.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 18):
        raise ServeError(f"after: {after[:80]!r} is not the id of an item of this list", "after")
    return int(number)


def shown(job: FineTuningJob) -> dict[str, Any]:
    """A job as OpenAI's clients know it."""
    chosen = job.choices
    hyperparameters = {
        "n_epochs": chosen.num_epochs or AUTO,
        "batch_size": chosen.batch_size or AUTO,
        "learning_rate_multiplier": chosen.lr_multiplier or AUTO,
    }
    if chosen.objective == DPO:
        hyperparameters["beta"] = chosen.beta or AUTO
    error = job.error
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_s,
        "finished_at": job.finished_s,
        "status": job.status,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.tenant,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [],
        "hyperparameters": hyperparameters,
        "method": {"type": chosen.objective, chosen.objective: {"hyperparameters": hyperparameters}},
        "trained_tokens": job.trained_tokens if job.status == SUCCEEDED else None,
        "seed": chosen.seed,
        "metadata": dict(chosen.metadata),
        "error": None if error is None else {"code": error.code, "message": error.message, "param": error.param},
        "integrations": [],
        "estimated_finish": None,
    }


def _shown_event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": f"{EVENT}{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": event.created_s,
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": dict(event.data),
    }


def _shown_checkpoint(one: JobCheckpoint) -> dict[str, Any]:
    return {
        "id": f"{CHECKPOINT}{one.number}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": one.created_s,
        "fine_tuning_job_id": one.job,
        "fine_tuned_model_checkpoint": one.model,
        "step_number": one.step,
        "metrics": {"step": one.step, **one.metrics},
    }
