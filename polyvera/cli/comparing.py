"""`compare` from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from polyvera.compare.comparison import Run


def run(recipe: Path, output: Path, *, out: Console) -> None:
    """Makes the runs that are not there yet, a line for each as it ends, then the report."""
    from polyvera.compare.comparison import RUNS, Comparison, compare
    from polyvera.compare.report import write

    comparison = Comparison.from_toml(recipe)

    def told(run: Run) -> None:
        found = f"{run.score} {run.value:.4f}" if run.phase == "final" else f"validation loss {run.eval_loss:.4f}"
        out.print(f"{run.task} {run.method} seed {run.seed} lr {run.lr:.3g}: {found}, {run.seconds:.0f} s")

    runs = compare(comparison, output, told)
    page = write(comparison, runs, output)
    kept = output / "comparison.toml"
    if not (kept.exists() and kept.samefile(recipe)):
        shutil.copyfile(recipe, kept)
    out.print(f"report: {page}\nruns: {output / RUNS}")
