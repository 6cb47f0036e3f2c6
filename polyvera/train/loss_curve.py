"""Curve: the training and validation loss over the steps of a run, as numbers and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

Points = tuple[tuple[int, float], ...]
SMOOTH = 0.9  # of an exponential mean over steps


@dataclass(frozen=True, slots=True)
class History:
    """(optimizer step, loss in nats) of every step, and of every evaluation on the validation rows."""

    training: Points = ()
    validation: Points = ()

    def recent(self, steps: int = 10) -> float:
        """The mean training loss of the last steps; nan for none."""
        losses = [loss for _, loss in self.training[-steps:]]
        return float(np.mean(losses)) if losses else float("nan")


def smoothed(losses: list[float]) -> list[float]:
    """An exponential mean that starts unbiased (divided by the weight that it has gathered)."""
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = SMOOTH * total + (1 - SMOOTH) * loss, SMOOTH * weight + (1 - SMOOTH)
        means.append(total / weight)
    return means


def draw(history: History, path: Path, title: str) -> Path:
    """Writes the curve as a PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.13, top=0.91)
    axes = figure.add_subplot()
    steps, losses = [s for s, _ in history.training], [v for _, v in history.training]
    axes.plot(steps, losses, color="#b8cbe4", linewidth=1, label="training, each step")
    axes.plot(steps, smoothed(losses), color="#1f4e9c", linewidth=2, label="training, smoothed")
    if history.validation:
        step, loss = min(history.validation, key=lambda point: point[1])
        best = f"validation, best {loss:.3g} at step {step}"
        axes.plot(*zip(*history.validation, strict=True), "o-", color="#c4501b", linewidth=2, label=best)
        axes.plot(step, loss, "o", color="white", markeredgecolor="#c4501b", markeredgewidth=2, markersize=9)
    axes.set(xlabel="optimizer step", ylabel="loss (nats)", title=title, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
