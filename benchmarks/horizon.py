"""What a sweep's rungs would have chosen, beside the test losses of whole runs at every rate.

    python benchmarks/horizon.py DATA --names TASK ... [--plain] [--output docs/results/rates/horizon.csv]

DATA is a folder with train/TASK.jsonl and test/TASK.jsonl. All rates train to the end as slots of one bank, so that the
choice after any share of the steps can be compared with the best of the whole run.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, isfinite
from pathlib import Path

from csv_table import write_csv
from ranks import losses_of

from polyvera import Recipe, load_base
from polyvera.data.packed_rows import PackedRows
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Fleet, views_for_gradients
from polyvera.train.fleet.halving import POWER, RUNGS, best_rate, going_on, moved, whole_run_rate
from polyvera.train.fleet.journal import Journal
from polyvera.train.preparation import adapted, encode_tables, read_tables
from polyvera.train.schedule import lr_factor

STRETCHES = (1.0, 2.0, 4.0)


def chosen(recipe: Recipe, losses: Mapping[float, Sequence[float]], total: int, stretch: float) -> float:
    """The rate that a sweep over these candidates would take by the loss of the step after each rung, with fewer rows.

    losses: of each step, fewer where a run broke off.
    """
    factor, left, best = lr_factor(recipe, total), {*losses}, 0.0
    last = ceil(min(1.0, RUNGS[-1].share * stretch) * total)
    for rung in RUNGS:
        step = ceil(min(1.0, rung.share * stretch) * total)
        left = {lr for lr in left if len(losses[lr]) > min(step, total - 1)}
        own = {lr: [losses[lr][min(step, total - 1)] / losses[lr][0]] for lr in left}
        best = best_rate(own, recipe.learning_rate / moved(factor, last, total) ** POWER)
        left = going_on(left, best, rung)
    return whole_run_rate(best, moved(factor, last, total))


def line(recipe: Recipe, base: Base, rates: Sequence[float], limit: int) -> dict[str, object]:
    """What one task gives."""
    rows, watched = encode_tables(recipe, read_tables(recipe), base)
    assert watched is not None
    held_out, training = PackedRows.of(replace(watched, rows=watched.rows[:limit])), PackedRows.of(rows)
    with adapted(recipe, base, len(rates)) as bank, views_for_gradients():
        assert bank is not None
        fleet = Fleet(recipe, base, bank, Journal(None, None), deque(), "", None, row=training.task)
        slots = zip(rates, bank.slots, strict=True)
        every = [fleet.seated(f"{lr:g}", slot, recipe.replaced(lr=lr), training, held_out) for lr, slot in slots]
        fleet.members, total = list(every), every[0].total
        for _ in range(total):
            fleet.round()
        ends = dict(zip(rates, losses_of(fleet, every), strict=True))
    paths = {lr: m.losses for lr, m in zip(rates, every, strict=True)}
    told = {f"loss at {lr:g}": f"{end:.3f}" if isfinite(end) else "none" for lr, end in ends.items()}
    picks = {f"chosen, x {stretch:g}": chosen(recipe, paths, total, stretch) for stretch in STRETCHES}
    return {**told, "best": min(ends, key=lambda lr: ends[lr]), **picks}


def choices() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.03, 0.06, 0.12, 0.24, 0.48, 0.96])
    parser.add_argument("--limit", type=int, default=30, help="test rows of each task")
    parser.add_argument("--plain", action="store_true", help="ask without the chat template")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """A line for each task: 80 rows in 20 steps of 4."""
    asked, base, lines = choices(), load_base("smollm2"), []
    own = {"columns": {"prompt": "input", "completion": "output"}, "chat": not asked.plain, "too_long": "skip"}
    for name in asked.names:
        data, test = (str(asked.data / part / f"{name}.jsonl") for part in ("train", "test"))
        recipe = Recipe(model="smollm2", data=data, validation=test, **own, batch_size=4, max_steps=20, max_rows=80)
        lines.append({"task": name, **line(recipe, base, asked.rates, asked.limit)})
        print(lines[-1], flush=True)
    if asked.output is not None:
        write_csv(asked.output, lines)


if __name__ == "__main__":
    main()
