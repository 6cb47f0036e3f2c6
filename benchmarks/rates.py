"""Fixed learning rates against the sweep's choice: a fleet of instruction tasks, and what a sweep costs one tenant.

    python benchmarks/rates.py DATA [--tasks 8] [--rates 0.02 0.06 0.2 0.6] [--output docs/results/rates]
    python benchmarks/rates.py DATA --cost

DATA is a folder with train/TASK.jsonl and test/TASK.jsonl. Every arm trains the same rows in the same order, and is
scored on the same test rows. --cost times a run with a rate that is given and one that sweeps, in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter, process_time

from csv_table import write_csv

from polyvera import Recipe, load_base, train, train_fleet
from polyvera.data.tables import read
from polyvera.evaluate.fleet_scores import TenantScores, fleet_scores
from polyvera.model.load import Base
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.tenants import Tenant, TenantRows

COLUMNS = {"prompt": "input", "completion": "output"}
AUTO = "auto"


def recipe_of(asked: argparse.Namespace, lr: float | str, **more: object) -> Recipe:
    """80 rows in 20 steps of 4, by the chat template unless asked plainly."""
    own = {
        "model": "smollm2",
        "data": "in memory",
        "columns": COLUMNS,
        "chat": not asked.plain,
        "too_long": "skip",
        "lr": lr,
    }
    return Recipe(**own, method=asked.method, batch_size=4, max_steps=20, max_rows=80, **more)


def names_of(asked: argparse.Namespace) -> list[str]:
    """Evenly spaced tasks, so that kinds of tasks are mixed."""
    if asked.names:
        return list(asked.names)
    every = sorted(path.stem for path in (asked.data / "train").glob("*.jsonl"))
    return every[asked.first :: max(1, len(every) // asked.tasks)][: asked.tasks]


def arm(asked: argparse.Namespace, base: Base, lr: float | str) -> tuple[dict[str, TenantScores], dict[str, object]]:
    """One fleet of all tasks: each task's scores, and the arm's line."""
    names = names_of(asked)
    everyone = [Tenant(name, TenantRows(str(asked.data / "train" / f"{name}.jsonl"))) for name in names]
    started = perf_counter()
    result = train_fleet(recipe_of(asked, lr, fleet=True), everyone=everyone, base=base)
    seconds = perf_counter() - started
    adapters = {o.name: o.adapter for o in result.of(FINISHED) if o.adapter is not None}
    tests = {name: read(asked.data / "test" / f"{name}.jsonl", COLUMNS, chat=not asked.plain) for name in adapters}
    rows = {name: replace(table, examples=table.examples[: asked.limit]) for name, table in tests.items()}
    scores = {one.name: one for one in fleet_scores(base, adapters, rows)}
    line = {"arm": lr, "lr": result.rate.lr if result.rate else lr, "seconds": f"{seconds:.0f}"}
    main = [one.scores[one.main] for one in scores.values()]
    losses = fmean(one.scores["loss"] for one in scores.values())
    return scores, line | {"median": f"{median(main):.3f}", "mean": f"{fmean(main):.3f}", "loss": f"{losses:.3f}"}


def cost(asked: argparse.Namespace, base: Base) -> None:
    """Runs of one tenant with a given rate and with a sweep, in turn; prints the ratios of their times.

    Processor time beside wall time, which other work on the machine changes less.
    """
    data = str(asked.data / "train" / f"{names_of(asked)[0]}.jsonl")
    for _ in range(asked.rounds):
        times = []
        for lr in (0.06, AUTO):
            started = perf_counter(), process_time()
            result = train(recipe_of(asked, lr).replaced(data=data), base=base, progress=False)
            times.append((perf_counter() - started[0], process_time() - started[1]))
        for what, given, swept in zip(("wall", "processor"), *times, strict=True):
            print(f"{what}: given {given:.1f} s, swept {swept:.1f} s, {swept / given:.2f} times")
        print(result.rate.text, flush=True)


def choices() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first of the tasks, to take others")
    parser.add_argument("--limit", type=int, default=10, help="test rows of each task")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.02, 0.06, 0.2, 0.6])
    parser.add_argument("--no-sweep", action="store_true", help="the given rates alone")
    parser.add_argument("--method", default="vera")
    parser.add_argument("--plain", action="store_true", help="ask without the chat template")
    parser.add_argument("--names", nargs="*", help="these tasks, instead of evenly spaced ones")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Trains and scores every arm, and writes the table."""
    asked, base = choices(), load_base("smollm2")
    if asked.cost:
        cost(asked, base)
        return
    lines = []
    for lr in (*([] if asked.no_sweep else [AUTO]), *asked.rates):
        scores, line = arm(asked, base, lr)
        lines.append(line | {name: f"{one.scores[one.main]:.3f}" for name, one in scores.items()})
        print(line, flush=True)
    if asked.output is not None:
        write_csv(asked.output / "rates.csv", lines)


if __name__ == "__main__":
    main()
