"""report: an alignment as JSON, in lines, and as a heat map."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from polyvera.align.mutual_knn import Alignment


def to_json(found: Alignment, models: tuple[str, str], column: str) -> dict[str, Any]:
    """All of it, with the mean and the 95 % point of the null."""
    i, j = found.best
    return {
        "models": list(models),
        "column": column,
        "texts": found.num_texts,
        "k": found.k,
        "score": found.score,
        "layers": [i, j],
        "chance": found.k / (found.num_texts - 1),
        "null_mean": fmean(found.null),
        "null_95": upper(found),
        "p": found.p_value,
        "scores": [list(row) for row in found.scores],
    }


def upper(found: Alignment) -> float:
    """What 95 % of the pairings at random stay below."""
    return sorted(found.null)[min(len(found.null) - 1, int(0.95 * len(found.null)))]


def rows(found: Alignment, models: tuple[str, str]) -> list[dict[str, str]]:
    """A row for each layer of the first model: the layer of the second that is most like it."""
    first, second = models
    return [
        {
            f"layer of {first}": str(i),
            f"most like layer of {second}": str(own.index(max(own))),
            "score": f"{max(own):.3f}",
        }
        for i, own in enumerate(found.scores)
    ]


def verdict(found: Alignment) -> str:
    """The best pair of layers beside the null, in one line."""
    i, j = found.best
    return (
        f"best: layers {i} and {j} share {found.score:.1%} of {found.k} nearest neighbours, {found.num_texts} texts; "
        f"texts paired at random: {fmean(found.null):.1%} for the best layers, 95 % below {upper(found):.1%}, "
        f"p = {found.p_value:.2g}"
    )


def draw(found: Alignment, models: tuple[str, str], path: Path) -> Path:
    """A heat map of the scores of all pairs of layers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(found.scores, aspect="auto", origin="lower", cmap="viridis", vmin=0)
    axes.set(xlabel=f"layer of {models[1]}", ylabel=f"layer of {models[0]}")
    axes.plot(*reversed(found.best), "r*", markersize=12)
    figure.colorbar(image, label=f"mutual {found.k}-nearest neighbours")
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
