"""routes: the Tinker API, all of it."""

from __future__ import annotations

from fastapi import APIRouter

from polyvera.server.context import ServerContext
from polyvera.server.routes.tinker.calls import add_calls
from polyvera.server.routes.tinker.checkpoints import add_checkpoints
from polyvera.server.routes.tinker.futures import add_futures
from polyvera.server.routes.tinker.operation_watch import OperationWatch
from polyvera.server.routes.tinker.runs import add_runs
from polyvera.server.routes.tinker.sample_tasks import SampleTasks
from polyvera.server.routes.tinker.samplers import add_samplers
from polyvera.server.routes.tinker.sessions import add_sessions

PREFIX = "/api/v1"


def routes(context: ServerContext) -> APIRouter:
    """The routes under /api/v1, which a server that trains nothing does not have."""
    router = APIRouter(prefix=PREFIX, include_in_schema=False)
    if context.fine_tuning is None:
        return router
    samples = SampleTasks(context)
    watch = OperationWatch(context.fine_tuning.operations, context.fine_tuning.database.path)
    for add in (add_sessions, add_runs, add_calls, add_checkpoints):
        add(router, context)
    add_samplers(router, context, samples)
    add_futures(router, context, samples, watch)
    return router
