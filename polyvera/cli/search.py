"""`search` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyvera.cli import tables
from polyvera.cli.flags import Whole
from polyvera.cli.verbs import AsJson, verb
from polyvera.train.many_runs import CHOSEN
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from polyvera.search.halving import Tried

RESULTS, RECIPE, PICTURE, ADAPTER = "search.json", "recipe.toml", "pareto.png", "adapter.safetensors"
WITHOUT = (*CHOSEN, "fleet", "adapter_column", "slots")


@verb("search")
def search(
    recipe: Annotated[Recipe, Whole(argument="DATA", name="data", without=WITHOUT)],
    num_bytes: Annotated[int, typer.Option("--bytes", min=1, help="The largest file: header, head and all numbers.")],
    output: Annotated[Path, typer.Option(help="Folder of the recipe, the adapter, the results and the picture.")],
    precision: Annotated[str, typer.Option(help="Of the stored numbers, such as int8, int4 or int3.")] = "int4",
    proposals: Annotated[int, typer.Option(min=1, help="Candidates of the search, and of random search.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="How often each winner is trained and scored.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Search the best spec for a task under a byte budget, beside uniform allocation and random search."""
    from polyvera.search.report import draw, recipe_text, to_json, verdicts, way_rows
    from polyvera.search.search import SearchTask
    from polyvera.search.search import search as searched
    from polyvera.store.file.codec import encode
    from polyvera.train.destination import check_folder
    from polyvera.train.tell import to_stderr

    check_folder(output)
    found = searched(SearchTask(recipe, num_bytes, precision, proposals, seeds), watch=_watch, tell=to_stderr)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(found), indent=1)
    (output / RESULTS).write_text(text + "\n", encoding="utf-8")
    (output / RECIPE).write_text(recipe_text(found), encoding="utf-8")
    (output / ADAPTER).write_bytes(encode(found.ways[0].adapter, precision))
    draw(found, output / PICTURE)
    if as_json:
        typer.echo(text)
        return
    out = tables.console()
    out.print(tables.table_of(way_rows(found)))
    for line in verdicts(found):
        out.print(line)
    places = {"recipe": RECIPE, "adapter": ADAPTER, "results": RESULTS, "picture": PICTURE}
    out.print("\n".join(f"{what}: {output / name}" for what, name in places.items()))


def _watch(way: str, tried: Tried) -> None:
    """A line for each candidate, on the error output."""
    line = f"{way}, {tried.num_steps} steps: {tried.candidate.text}: validation loss {tried.loss:.4f}"
    tables.console(error=True).print(line, markup=False)
