"""report: what a search found as a table, a verdict, a recipe and a picture of loss against bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from statistics import stdev
from typing import Any

from polyvera.compare.interval import interval
from polyvera.compare.report import front
from polyvera.search.search import Found, Way, winning_recipe

COLOURS = ("#1f4e9c", "#c4501b", "#999999")


def way_rows(found: Found) -> list[dict[str, str]]:
    """A row for each way to choose."""
    first = found.ways[0]
    return [
        {
            "": way.name,
            "spec": way.winner.text,
            found.metric: f"{way.mean:.4f} ± {_spread(way):.4f}",
            "search against it": "" if way is first else _difference(first, way),
            "bytes": f"{way.num_bytes:,}",
            "tried": str(sum(map(len, way.rungs))),
            "lr": f"{way.lrs[0]:g}",
        }
        for way in found.ways
    ]


def _spread(way: Way) -> float:
    return stdev(way.scores) if len(way.scores) > 1 else 0.0


def _difference(first: Way, other: Way) -> str:
    paired = interval(first.scores, other.scores)
    return f"{first.mean - other.mean:+.4f}" if paired is None else "{:+.4f} ± {:.4f}".format(*paired)


def verdicts(found: Found) -> Iterator[str]:
    """Whether the search beats each other way, in words; within the interval it does not."""
    first, *others = found.ways
    for other in others:
        paired = interval(first.scores, other.scores)
        mean, half = paired or (first.mean - other.mean, float("inf"))
        word = "beats" if mean > half else "loses to" if -mean > half else "does not differ from"
        seeds = f"{len(first.scores)} seeds" if paired else "one seed, which says nothing of noise"
        yield f"the search {word} {other.name} by {found.metric}: {_difference(first, other)} ({seeds})"


def to_json(found: Found) -> dict[str, Any]:
    """Everything but the numbers of adapters, as JSON values."""
    return {
        "bytes": found.task.num_bytes,
        "stored": found.task.stored,
        "metric": found.metric,
        "saliency": found.saliency,
        "verdicts": list(verdicts(found)),
        "ways": {
            way.name: {
                "spec": way.winner.choices(found.layers),
                "scores": list(way.scores),
                "lrs": list(way.lrs),
                "bytes": way.num_bytes,
                "tried": [
                    [
                        {"spec": t.candidate.text, "steps": t.num_steps, "loss": t.loss if isfinite(t.loss) else None}
                        for t in rung
                    ]
                    for rung in way.rungs
                ],
            }
            for way in found.ways
        },
    }


def recipe_text(found: Found) -> str:
    """The winning recipe as TOML."""
    recipe = winning_recipe(found)
    given = recipe.model_dump(mode="json", include=recipe.model_fields_set, exclude_none=True)
    return "".join(f"{name} = {_toml(value)}\n" for name, value in given.items())


def _toml(value: Any) -> str:
    """A value of a recipe; strings, numbers and lists are written in TOML as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def draw(found: Found, path: Path) -> Path:
    """Validation loss at the first rung against the bytes of the file, with the front and each way's winner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    every: list[tuple[str, int, float]] = []
    for way, colour in zip(found.ways, COLOURS, strict=True):
        points = [(t.num_bytes, t) for t in way.rungs[0] if isfinite(t.loss)]
        every += [(t.candidate.text, size, -t.loss) for size, t in points]
        axes.plot([s for s, _ in points], [t.loss for _, t in points], "o", color=colour, alpha=0.7, label=way.name)
        won = [(s, t.loss) for s, t in points if t.candidate == way.winner]
        axes.plot([s for s, _ in won], [loss for _, loss in won], "o", markersize=11, fillstyle="none", color=colour)
    best = front(every)
    axes.step([p[1] for p in best], [-p[2] for p in best], where="post", color="#b8cbe4", zorder=0, label="front")
    axes.axvline(found.task.num_bytes, color="#666666", linewidth=1, linestyle="--", label="budget")
    steps = found.ways[0].rungs[0][0].num_steps
    axes.set(xlabel="bytes of the file", ylabel=f"validation loss after {steps} steps", title="what was tried")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
