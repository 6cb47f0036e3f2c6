"""`align` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyvera.cli import tables
from polyvera.cli.verbs import AsJson, verb

RESULTS, PICTURE = "align.json", "align.png"
AnyModel = Annotated[str, typer.Argument(help="A model: a folder, a hub id, or a wheel such as smollm2.")]


@verb("align")
def align(
    model: AnyModel,
    other: AnyModel,
    data: Annotated[str, typer.Argument(help="Texts: a JSONL, CSV or Parquet file, or hub/id:config@split.")],
    column: Annotated[str | None, typer.Option(help="The column of the texts; by default the first of texts.")] = None,
    rows: Annotated[int, typer.Option(min=3, help="At most so many texts.")] = 1000,
    k: Annotated[int, typer.Option("--k", min=1, help="Nearest neighbours of each text.")] = 10,
    permutations: Annotated[int, typer.Option(min=1, help="Pairings at random, for the null.")] = 100,
    output: Annotated[Path | None, typer.Option(help="Folder of the results and the heat map.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how alike two models see the same texts: mutual nearest neighbours of their layers, beside a null."""
    from polyvera.align import report
    from polyvera.align.features import layer_features, texts_of
    from polyvera.align.mutual_knn import align as aligned
    from polyvera.model.config import AUTO_TASK
    from polyvera.model.load import load_base

    column, texts = texts_of(data, column, rows)
    features = [layer_features(load_base(name, task=AUTO_TASK), texts) for name in (model, other)]
    found, models = aligned(features[0], features[1], k, permutations), (model, other)
    text = json.dumps(report.to_json(found, models, column), indent=1)
    places = {}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / RESULTS).write_text(text + "\n", encoding="utf-8")
        places = {"results": output / RESULTS, "picture": report.draw(found, models, output / PICTURE)}
    if as_json:
        typer.echo(text)
        return
    out = tables.console()
    out.print(tables.table_of(report.rows(found, models), f"{found.num_texts} texts of {column!r}"))
    out.print(report.verdict(found))
    for what, path in places.items():
        out.print(f"{what}: {path}")
