"""`basis` from the command line."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from polyvera.cli import tables
from polyvera.cli.flags import Whole
from polyvera.cli.verbs import AsJson, verb
from polyvera.train.many_runs import UNUSED
from polyvera.train.recipe import Recipe


@verb("basis")
def basis(
    kind: Annotated[str, typer.Argument(help="activations, gradients, fleet, or a drawn one such as orthogonal.")],
    recipe: Annotated[Recipe, Whole(argument="DATA", name="data", without=UNUSED)],
    as_json: AsJson = False,
) -> None:
    """Make a shared pair A, B from data, gradients or a fleet, and keep it in the store once, for `train --basis`."""
    from polyvera.bases.make import about, make_basis
    from polyvera.train.preparation import registry_of
    from polyvera.train.tell import to_stderr

    registry = registry_of(recipe)
    made = make_basis(recipe, kind, tell=to_stderr)
    sha256 = registry.bases.put(made, recipe.name, about(recipe, kind))
    key = made.key
    facts = {"name": recipe.name, "sha256": sha256, "rank": key.rank, "in_max": key.in_max, "out_max": key.out_max}
    facts |= {"bytes": 4 * key.num_params, "store": registry.url}
    typer.echo(json.dumps(facts, indent=2)) if as_json else tables.console().print(tables.fact_table(facts))
