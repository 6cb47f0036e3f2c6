"""`dimension` from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from polyvera.cli import tables
from polyvera.cli.flags import Whole
from polyvera.cli.verbs import AsJson, verb
from polyvera.train.many_runs import CHOSEN
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from polyvera.dimension.measurement import Dimensions
    from polyvera.dimension.point_file import Point

RESULTS = "dimension.json"


@verb("dimension")
def dimension(
    recipe: Annotated[Recipe, Whole(argument="DATA", name="data", without=CHOSEN)],
    output: Annotated[
        Path, typer.Option(help="Folder of the points, the results and the picture; cut short, call again.")
    ],
    share: Annotated[float, typer.Option(help="The share of the reference's score that is to be reached.")] = 0.9,
    family: Annotated[
        list[str] | None,
        typer.Option(help="A method, or method:rank, whose letters are a hash. Repeatable.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The method, or method:rank, whose score the line is of.", show_default=False)
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Numbers of the hash. Repeatable.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds at each point: of hash, basis and order of rows.")] = 3,
    refine: Annotated[int, typer.Option(min=0, help="Sizes that are added where a curve crosses the line.")] = 2,
    frozen_head: Annotated[
        bool, typer.Option("--frozen-head", help="Do not train the head: it is made of the labels' names.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how few numbers reach a share of the score (the intrinsic dimension), of one task or a folder of them."""
    from polyvera.dimension.family import FAMILIES, REFERENCE, Family
    from polyvera.dimension.measurement import Measurement, measure
    from polyvera.train.tell import to_stderr

    found = measure(
        Measurement(
            recipe,
            share=share,
            families=tuple(map(Family.parse, family or FAMILIES)),
            reference=Family.parse(reference or REFERENCE),
            sizes=tuple(sorted(set(size or ()))),
            num_seeds=seeds,
            refinements=refine,
            frozen_head=frozen_head,
        ),
        output,
        watch=_watch,
        tell=to_stderr,
    )
    report(found, output, as_json=as_json)


def report(found: Dimensions, folder: Path, *, as_json: bool) -> None:
    """Writes the results and the pictures; prints them as tables, or as JSON."""
    from polyvera.dimension.report import (
        CURVES,
        TASKS_PICTURE,
        dimension_rows,
        draw_curves,
        draw_tasks,
        point_rows,
        to_json,
    )

    text = json.dumps(to_json(found), indent=1)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    pictures = [draw_curves(found, folder / CURVES)]
    if len(found.reference) > 1:
        pictures.append(draw_tasks(found, folder / TASKS_PICTURE))
    if as_json:
        typer.echo(text)
        return
    out = tables.console()
    if len(found.reference) == 1:
        rows = list(point_rows(found, next(iter(found.reference))))
        out.print(tables.table_of(rows, "", set(rows[0]) - {"family"}))
    out.print(tables.table_of(dimension_rows(found)))
    for tenant, problem in found.problems.items():
        out.print(f"[bold]{escape(tenant)}[/] left out: {escape(problem)}")
    out.print("\n".join((f"results: {folder / RESULTS}", *(f"picture: {path}" for path in pictures))))


def _watch(points: Sequence[Point]) -> None:
    """A line for each run, on the error output."""
    first, scores = points[0], [point.score for point in points if point.score is not None]
    size = "without a hash" if first.size is None else f"{first.size:,} numbers"
    of = f", mean of {len(scores)} tasks" if len(points) > 1 else ""
    score = f"{first.metric} {sum(scores) / len(scores):.4f}{of}" if scores else f"no score: {first.problem}"
    tables.console(error=True).print(f"{first.family}, {size}, seed {first.seed}: {escape(score)}")
