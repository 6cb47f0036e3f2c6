"""`train` from the command line: the cost first, then the run, then the adapter in its store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from polyvera.cli import tables
from polyvera.errors import DataError, RecipeError, did_you_mean
from polyvera.plan import bytes_text, cost, full_cost
from polyvera.train.memory import peak_bytes
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from polyvera.data.tables import Table
    from polyvera.model.shapes import ConfigSource
    from polyvera.train.tenants import Tenant
    from polyvera.train.trainer import TrainResult


def run(recipe: Recipe, *, resume: bool, dry_run: bool, out: Console) -> None:
    """Prints the cost, trains, prints the result and publishes it. Raises before the first step where it can."""
    from polyvera.train.tell import to_stderr
    from polyvera.train.trainer import train

    if recipe.name is None and recipe.output is None and not dry_run:
        raise RecipeError("nothing would be kept: give --name (to publish the adapter), --output (a folder), or both")
    data = print_cost(recipe, out)
    if dry_run:
        to_stderr(data.unread_text)
        return
    result = train(recipe, resume=resume)
    out.print(tables.score_table({"": dict(result.scores)}))
    out.print(
        f"{result.num_trained:,} of {result.num_params:,} parameters trained in {result.num_steps:,} steps, "
        f"{result.seconds:.0f} s, peak memory {bytes_text(peak_bytes())}"
    )
    for line in _left_out(result):
        out.print(line)
    for what, path in result.paths.items():
        out.print(f"{what}: {path}")
    if result.ref is not None:
        ref = result.ref
        out.print(f"published {ref} in {recipe.store}: {ref.num_bytes:,} bytes, sha256 {ref.digest[:12]}")


def _left_out(result: TrainResult) -> Iterator[str]:
    """What of the rows was not trained on, a line each."""
    for what, rows in (("", result.rows), (" of validation", result.held_out)):
        if rows is not None and rows.skipped:
            yield f"{len(rows.skipped)} rows{what} were left out: their answers are over {rows.max_length} tokens"
        if rows is not None and rows.shortened:
            texts = "texts" if result.labels else "prompts"
            cut = "cut at the end" if result.labels or rows.task.answers_apart else "shortened from the left"
            yield f"{len(rows.shortened)} {texts}{what} were {cut} to fit {rows.max_length} tokens"


def head_for(
    source: ConfigSource, task: str | None, num_labels: int | None
) -> tuple[str | None, int | None, tuple[str, ...]]:
    """(kind of model, outputs, modules) of the head that a task trains; None, outputs and none where no task is named.

    num_labels: None is 1 for numbers, else 2. Raises RecipeError for a task that there is not.
    """
    from polyvera.adapter.targets import find_head
    from polyvera.model.shapes import meta_model
    from polyvera.model.task import TASKS

    if task is None:
        return None, num_labels, ()
    if task not in TASKS:
        raise RecipeError(f"task={task!r} must be one of: {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    row = TASKS[task]
    if not row.has_head:
        return row.kind, num_labels, ()
    num = num_labels or (1 if row.answer == "number" else 2)
    return row.kind, num, find_head(meta_model(source, kind=row.kind, num_labels=num))


def print_cost(recipe: Recipe, out: Console, everyone: Sequence[Tenant] = ()) -> Table:
    """What the run costs; with tenants, what a fleet of them does. Returns the rows, of the first tenant.

    Raises DataError, RecipeError or TargetError.
    """
    from polyvera.model.load import config_source
    from polyvera.model.shapes import model_shapes, read_config
    from polyvera.train.fleet.fleet import SLOTS
    from polyvera.train.preparation import read_tables, row_length
    from polyvera.train.tenants import first_table

    data = first_table(everyone, recipe) if everyone else read_tables(recipe).training
    if data is None:
        raise DataError(f"{recipe.data}: none of the {len(everyone)} tenants has rows that can be used")
    config = read_config(config_source(recipe.model))
    kind, num_labels, head = head_for(config, data.task, len(data.labels) or None)
    spec = recipe.spec(head)
    shapes = model_shapes(config, spec, kind=kind, num_labels=num_labels)
    row_length(recipe, shapes.context_length)
    dtype = shapes.dtype or "float32" if recipe.dtype == "auto" else recipe.dtype
    whole = full_cost(shapes.num_params, base_dtype=dtype)
    own = cost(spec, shapes.sites, shapes.num_params, head=shapes.head, base_dtype=dtype, stored=recipe.stored)
    what = f"{len(everyone)} tenants" if everyone else f"{len(data)} rows"
    title = f"{shapes.name}: {what}, {len(shapes.sites)} adapted layers"
    out.print(tables.cost_table([whole] if recipe.full else [own, whole], title))
    if shapes.coverage is not None and not recipe.full:
        out.print(shapes.coverage.text)
    if everyone:
        slots = min(recipe.slots or SLOTS, len(everyone))
        out.print(
            f"{slots} at a time: {bytes_text(own.fleet_bytes(slots))} in training, activations on top; "
            f"{bytes_text(len(everyone) * own.stored_bytes)} stored in all"
        )
    return data
