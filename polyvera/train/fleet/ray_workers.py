"""train_on_workers: a fleet's tenants spread over Ray workers, on one machine or many.

Each worker trains its share of the tenants in a bank of its own and publishes into the one store. A worker that dies is
started again, and its share goes on from its last save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from polyvera.adapter.adapter import Adapter
from polyvera.errors import RecipeError
from polyvera.store.file.codec import decode, encode
from polyvera.store.registry import Registry
from polyvera.train.checkpoint import RECIPE
from polyvera.train.fleet.journal import Outcome
from polyvera.train.fleet.one_process import FleetResult, train_here
from polyvera.train.fleet.traffic import Traffic
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant

RETRIES = 5


def train_on_workers(
    recipe: Recipe,
    everyone: Sequence[Tenant],
    *,
    store: str,
    start: Callable[[], Adapter | None] = lambda: None,
    resume: bool = False,
) -> FleetResult:
    """Trains a fleet on recipe.workers Ray workers; store and recipe.output must be places that all of them reach.

    Uses the Ray cluster that is connected, or the one in RAY_ADDRESS, or else starts a local one. Raises RecipeError
    where ray is not installed or there is no output, and what train_here() raises.
    """
    ray, num_workers = _ray(), recipe.workers or 1
    if recipe.output is None:
        raise RecipeError("workers need output: the folder that each keeps its state in, to go on after a failure")
    started = time.monotonic()
    shares = [share for share in (list(everyone[i::num_workers]) for i in range(num_workers)) if share]
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, logging_level="warning")
    try:
        cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0) // len(shares))
        gpus = ray.cluster_resources().get("GPU", 0.0) / len(shares)
        work = ray.remote(num_cpus=cpus, num_gpus=min(1.0, gpus), max_retries=RETRIES)(_share)
        again = None if resume else uuid4().hex
        begun = start()  # once for all: the store grows while they train
        given = None if begun is None else encode(begun)
        tasks = [work.remote(recipe, i, share, store, again, given) for i, share in enumerate(shares)]
        found: list[tuple[tuple[Outcome, ...], Traffic]] = ray.get(tasks)
    finally:
        if own:
            ray.shutdown()
    outcomes = tuple(outcome for own_outcomes, _ in found for outcome in own_outcomes)
    return FleetResult(outcomes, _together([traffic for _, traffic in found]), time.monotonic() - started)


def _share(
    recipe: Recipe,
    number: int,
    everyone: list[Tenant],
    store: str,
    run: str | None,
    start: bytes | None,
) -> tuple[tuple[Outcome, ...], Traffic]:
    """One worker's part. run: a new run's own name; None goes on with whatever run the folder holds."""
    assert recipe.output is not None
    folder = Path(recipe.output) / f"worker-{number}"
    mine = folder / f".{run}"  # left by this very run, whose worker has died
    if run is not None and not mine.exists() and (folder / RECIPE).exists():
        raise RecipeError(f"output={recipe.output!r} holds a run already: resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mine.touch()
    result = train_here(
        recipe.replaced(output=str(folder), workers=None),
        everyone,
        registry=Registry(store),
        start=lambda: None if start is None else decode(start),
        resume=True,
    )
    return result.outcomes, result.traffic


def _together(several: Sequence[Traffic]) -> Traffic:
    """The sum of what went through all workers; seconds are those of the one that took longest."""
    names = ("rounds", "batches", "rows", "tokens", "padding")
    sums = {name: sum(getattr(one, name) for one in several) for name in names}
    return Traffic(**sums, seconds=max(one.seconds for one in several))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RecipeError("workers need Ray: pip install 'polyvera[ray]'") from error
    return ray
