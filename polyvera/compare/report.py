"""report: a comparison as a page of Markdown with a picture of score against bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from polyvera.compare.comparison import Comparison, Run, groups
from polyvera.compare.interval import interval
from polyvera.plan import bytes_text

PAGE, PICTURE = "report.md", "pareto.png"


@dataclass(frozen=True)
class Line:
    """One method on one task, over its seeds."""

    task: str
    method: str
    score: str
    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds, 0 for one."""
        return _spread(self.values)[1]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation)"""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def lines(runs: Sequence[Run]) -> list[Line]:
    """A line for each task and method."""
    return [
        Line(task, method, own[0].score, tuple(run.value for run in own), tuple(own))
        for (task, method), own in groups(runs).items()
    ]


def front(points: Sequence[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """The (name, bytes, score) that no other beats in both: fewer bytes and at least the score."""
    best: list[tuple[str, int, float]] = []
    for point in sorted(points, key=lambda p: (p[1], -p[2])):
        if not best or point[2] > best[-1][2]:
            best.append(point)
    return best


def means(every: Sequence[Line]) -> list[tuple[str, int, float]]:
    """(method, bytes without the head, mean score over the tasks) of each method that has a line for every task."""
    tasks = {line.task for line in every}
    methods = dict.fromkeys(line.method for line in every)
    found = []
    for method in methods:
        own = [line for line in every if line.method == method]
        if {line.task for line in own} == tasks:
            size = round(fmean(line.runs[0].adapter_bytes for line in own))
            found.append((method, size, fmean(line.mean for line in own)))
    return found


def write(comparison: Comparison, runs: Sequence[Run], folder: Path) -> Path:
    """Writes report.md and pareto.png into the folder; returns the page's path."""
    every = lines(runs)
    folder.mkdir(parents=True, exist_ok=True)
    draw(every, folder / PICTURE, comparison.title)
    text = [f"# {comparison.title}", "", f"![score against bytes]({PICTURE})", "", *_table(every), ""]
    for task in dict.fromkeys(line.task for line in every):
        text += [f"## {task}", "", *_task_table([line for line in every if line.task == task]), ""]
    text += ["## How", "", *_how(comparison), ""]
    path = folder / PAGE
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def _table(every: Sequence[Line]) -> list[str]:
    """Methods by tasks."""
    tasks = list(dict.fromkeys(line.task for line in every))
    best = front(means(every))
    rows = [
        "| method | bytes without head | " + " | ".join(tasks) + " | mean | |",
        "|---|---:|" + "---:|" * (len(tasks) + 2),
    ]
    by = {(line.task, line.method): line for line in every}
    for method, size, mean in means(every):
        cells = [f"{by[task, method].mean:.3f} ± {by[task, method].spread:.3f}" for task in tasks]
        mark = "on the front" if any(method == name for name, _, _ in best) else ""
        rows.append(f"| {method} | {bytes_text(size)} | {' | '.join(cells)} | {mean:.3f} | {mark} |")
    return rows


def _task_table(own: Sequence[Line]) -> list[str]:
    also = list(own[0].runs[0].others)
    rows = [
        "| method | " + " | ".join((own[0].score, *also)) + " | seeds | against the first | lr | trained | stored "
        "| without head | s a run | peak memory |",
        "|---|" + "---:|" * (9 + len(also)),
    ]
    for line in own:
        run = line.runs[0]
        scores = [line.values, *([r.others[name] for r in line.runs] for name in also)]
        told = " | ".join("{:.4f} ± {:.4f}".format(*_spread(values)) for values in scores)
        rows.append(
            f"| {line.method} | {told} | {len(line.runs)} | {_against(line, own[0])} | "
            f"{run.lr:.3g}{' (edge)' if run.is_edge else ''} | "
            f"{run.num_params:,} | {bytes_text(run.stored_bytes)} | {bytes_text(run.adapter_bytes)} | "
            f"{fmean(r.seconds for r in line.runs):.0f} | {bytes_text(max(r.peak_bytes for r in line.runs))} |"
        )
    return rows


def _against(line: Line, first: Line) -> str:
    """The paired difference of the scores from another line's, with its interval; '' from itself or with one seed."""
    found = None if line is first or len(line.values) != len(first.values) else interval(line.values, first.values)
    return "" if found is None else "{:+.4f} ± {:.4f}".format(*found)


def _how(comparison: Comparison) -> list[str]:
    factors = ", ".join(f"{factor:g}" for factor in comparison.factors)
    seeds = ", ".join(map(str, comparison.seeds))
    return [
        f"Seeds {seeds}: order of rows, validation split, new head and frozen basis. Each method's learning rate is "
        f"the best of {factors} times its usual one, by validation loss at the first seed; where the best was the "
        f"lowest or the highest, up to {comparison.extensions} more were tried beyond it, and 'edge' marks a rate that "
        "still is. ± is the standard deviation over the seeds; 'against the first' is the mean difference from the "
        "first line, seed by seed, with its 95 % interval. Bytes are of fp32 numbers. Peak memory is the whole "
        "process's.",
        "",
        "Every run: [runs.csv](runs.csv). The choices: [comparison.toml](comparison.toml).",
    ]


def _neighbours(points: Sequence[tuple[str, int, float]]) -> set[str]:
    """Those whose name would lie on another's: of nearly the same bytes, and the lower one of the two."""
    pairs = [(one, other) for one in points for other in points if one[0] != other[0]]
    return {one[0] for one, other in pairs if max(one[1], other[1]) < 1.3 * min(one[1], other[1]) and one[2] < other[2]}


def draw(every: Sequence[Line], path: Path, title: str) -> Path:
    """Mean score over all tasks against the bytes without the head, with the front; returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = means(every)
    best = front(points)
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.step([p[1] for p in best], [p[2] for p in best], where="post", color="#b8cbe4", zorder=1, label="front")
    below = _neighbours(points)
    for name, size, score in points:
        own = [line for line in every if line.method == name]
        error = fmean(line.spread for line in own)
        on = any(name == p[0] for p in best)
        axes.errorbar(size, score, yerr=error, fmt="o", color="#1f4e9c" if on else "#999999", capsize=3, zorder=2)
        axes.annotate(name, (size, score), xytext=(7, -13 if name in below else 5), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.15)
    axes.set(xlabel="bytes of one adapter, without the head", ylabel="mean score over the tasks", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
