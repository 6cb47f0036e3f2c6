"""report: a measurement as a table, as JSON, and as two pictures: scores by size, and the dimensions of many tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from polyvera.dimension.crossing import Crossing
from polyvera.dimension.measurement import Curve, Dimensions

CURVES, TASKS_PICTURE = "dimension.png", "dimensions.png"
FEW = 6  # tasks whose curves are drawn one beside the other
COLOURS = ("#1f4e9c", "#c4501b", "#3c8d4f", "#7b4ea3", "#8a6d1d", "#1b8a8f")
GREY = "#666666"


def size_text(crossing: Crossing) -> str:
    """A dimension with its interval, for people: '425 [310, 560]'."""
    if crossing.low is None or crossing.high is None:
        return _number(crossing.size)
    return f"{_number(crossing.size)} [{_number(crossing.low)}, {_number(crossing.high)}]"


def _number(size: float) -> str:
    return f"{size:,.0f}" if isfinite(size) else "not reached"


def name_of(share: float) -> str:
    """What the literature calls the size at that share of the score: d90 for 0.9."""
    return f"d{100 * share:g}"


def dimension_rows(found: Dimensions) -> list[dict[str, str]]:
    """A row for each task: the reference's score and the dimension by family."""
    name = name_of(found.measurement.share)
    return [
        {
            "task": tenant,
            "score": found.metric[tenant],
            found.measurement.reference.name: f"{fmean(own):.4f}",
            "line": f"{found.measurement.share * fmean(own):.4f}",
            **{f"{name}, {c.family}": size_text(c.crossing) for c in found.curves if c.tenant == tenant},
        }
        for tenant, own in found.reference.items()
    ]


def point_rows(found: Dimensions, tenant: str) -> Iterator[dict[str, str]]:
    """A row for each family and size of one task."""
    whole = fmean(found.reference[tenant])
    lrs = {(p.family, p.size): p.lr for p in found.points if p.seed == 0 and p.lr is not None}
    for curve in (c for c in found.curves if c.tenant == tenant):
        for size, scores in curve.scores.items():
            lr = lrs.get((curve.family, size))
            yield {
                "family": curve.family,
                "numbers": f"{size:,}",
                "score": f"{fmean(scores):.4f}",
                "± (seeds)": f"{_spread(scores):.4f} ({len(scores)})",
                "of the reference": f"{fmean(scores) / whole:.3f}" if whole else "",
                "lr": "" if lr is None else f"{lr:g}",
            }


def _spread(scores: Sequence[float]) -> float:
    return stdev(scores) if len(scores) > 1 else 0.0


def to_json(found: Dimensions) -> dict[str, Any]:
    """Everything, as JSON values; a size that is not reached is null."""
    share = found.measurement.share

    def finite(size: float | None) -> float | None:
        return size if size is not None and isfinite(size) else None

    def curve_of(curve: Curve) -> dict[str, Any]:
        at = curve.crossing
        scores = {str(size): list(own) for size, own in curve.scores.items()}
        return {"dimension": finite(at.size), "low": finite(at.low), "high": finite(at.high), "scores": scores}

    tasks = {
        tenant: {
            "metric": found.metric[tenant],
            "reference": list(own),
            "line": share * fmean(own),
            "families": {c.family: curve_of(c) for c in found.curves if c.tenant == tenant},
        }
        for tenant, own in found.reference.items()
    }
    return {
        "share": share,
        "reference": found.measurement.reference.name,
        "tasks": tasks,
        "problems": found.problems,
    }


def draw_curves(found: Dimensions, path: Path) -> Path:
    """Score against size for each task, at most FEW of them, with the reference, the line and where it is crossed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tenants = list(found.reference)[:FEW]
    columns = min(3, len(tenants))
    rows = -(-len(tenants) // columns)
    size = (6.8, 4.6) if len(tenants) == 1 else (4.2 * columns, 3.4 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for number, tenant in enumerate(tenants, 1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_task(axes, found, tenant)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path


def _draw_task(axes: Any, found: Dimensions, tenant: str) -> None:
    name, share = name_of(found.measurement.share), found.measurement.share
    whole = fmean(found.reference[tenant])
    axes.axhline(whole, color=GREY, linewidth=1, label=f"{found.measurement.reference.name}, without a hash")
    axes.axhline(share * whole, color=GREY, linewidth=1, linestyle="--", label=f"{share:.0%} of it")
    for curve, colour in zip((c for c in found.curves if c.tenant == tenant), _colours(), strict=False):
        own = {s: v for s, v in curve.scores.items() if s}
        label = f"{curve.family}: {name} = {size_text(curve.crossing)}"
        axes.errorbar(
            list(own),
            [fmean(v) for v in own.values()],
            yerr=[_spread(v) for v in own.values()],
            fmt="o-",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            color=colour,
            label=label,
        )
        _draw_crossing(axes, curve.crossing, share * whole, colour)
    bare = next((v for c in found.curves if c.tenant == tenant for s, v in c.scores.items() if not s), None)
    if bare is not None:
        axes.axhline(fmean(bare), color="#bbbbbb", linewidth=1, linestyle=":", label="no adapter")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set(xlabel="trained numbers", ylabel=found.metric[tenant], title=tenant)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)


def _draw_crossing(axes: Any, crossing: Crossing, line: float, colour: str) -> None:
    if isfinite(crossing.size) and crossing.size:
        axes.plot([crossing.size], [line], "D", color=colour, markersize=7, markerfacecolor="white", zorder=4)
    if crossing.low and crossing.high and isfinite(crossing.low) and isfinite(crossing.high):
        axes.plot([crossing.low, crossing.high], [line, line], color=colour, linewidth=4, alpha=0.35, zorder=3)


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def draw_tasks(found: Dimensions, path: Path) -> Path:
    """The dimension of each task against the reference's score; one that is not reached stands at the right edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    edge = 2 * max((s for c in found.curves for s in c.scores), default=1)
    for family, colour in zip(found.measurement.families, _colours(), strict=False):
        own = [c for c in found.curves if c.family == family.name]
        sizes = [max(1.0, min(c.crossing.size, edge)) for c in own]
        middle = median([c.crossing.size for c in own])
        label = f"{family.name}, median {_number(middle)}"
        axes.plot(sizes, [fmean(found.reference[c.tenant]) for c in own], "o", color=colour, alpha=0.75, label=label)
    if any(c.crossing.size == inf for c in found.curves):
        axes.axvline(edge, color=GREY, linewidth=1, linestyle=":", label="not reached")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    name = name_of(found.measurement.share)
    axes.set(
        xlabel=f"{name}, in trained numbers", ylabel=f"score of {found.measurement.reference.name}, without a hash"
    )
    axes.set(title=f"{len(found.reference)} tasks: how many numbers reach {found.measurement.share:.0%} of the score")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
