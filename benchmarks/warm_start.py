"""Starting from the mean of a fleet's adapters against starting from nothing, on tasks that the mean has not seen.

    python benchmarks/warm_start.py DATA STORE [--tasks T ...] [--steps 20] [--output docs/results/warm-start]

DATA is a folder with train/TASK.jsonl and test/TASK.jsonl; STORE has an adapter for each task, as a fleet publishes
them. The mean is taken over the adapters of all other tasks. Both starts train as fleets on the same rows in the same
order; the validation loss is taken every few steps, and told is how many steps each start needs to the loss that the
cold one ends with, then the scores on test rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from csv_table import write_csv

from polyvera import Recipe, Registry, load_base
from polyvera.adapter.adapter import Adapter
from polyvera.data.tables import read
from polyvera.evaluate.fleet_scores import TenantScores, fleet_scores
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Fleet
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.tenants import Tenant, TenantRows
from polyvera.train.warm_start import mean

TASKS = (
    "task1195_disflqa_disfluent_to_fluent_conversion",
    "task1623_disfl_qa_disfluent_question_classification",
    "task881_schema_guided_dstc8_classification",
    "task033_winogrande_answer_generation",
    "task040_qasc_question_generation",
)
Losses = dict[str, list[tuple[int, float]]]


def trained(
    recipe: Recipe, base: Base, everyone: list[Tenant], start: Adapter | None
) -> tuple[dict[str, Adapter], Losses]:
    """Each task's adapter and its validation losses."""
    losses: Losses = {}

    def keep(fleet: Fleet) -> None:
        losses.update({member.name: member.eval_losses for member in fleet.members})

    result = train_fleet(recipe, everyone=everyone, base=base, start=start, watch=keep)
    return {o.name: o.adapter for o in result.of(FINISHED) if o.adapter is not None}, losses


def reached(losses: list[tuple[int, float]], wanted: float) -> int | None:
    """The first step at which the loss is as low as wanted, or None."""
    return next((step for step, loss in losses if loss <= wanted), None)


def fleet_recipe(asked: argparse.Namespace) -> Recipe:
    """A constant rate, so that a step is worth the same in both runs wherever it is."""
    return Recipe(
        model="smollm2",
        data="in memory",
        fleet=True,
        columns={"prompt": "input", "completion": "output"},
        chat=True,
        lr=asked.lr,
        batch_size=4,
        max_steps=asked.steps,
        slots=len(asked.tasks),
        validation=asked.held / 300,
        eval_every=asked.every,
        schedule="constant",
        too_long="skip",
    )


def compared(task: str, losses: dict[str, Losses], scores: dict[str, dict[str, TenantScores]]) -> dict[str, object]:
    """One task's line: the loss that the cold start ends with, the steps of both to it, and the test scores."""
    cold, warm = losses["cold"][task], losses["warm"][task]
    goal, main = cold[-1][1], scores["cold"][task].main
    return {
        "task": task,
        "goal loss": f"{goal:.4f}",
        "cold steps": reached(cold, goal),
        "warm steps": reached(warm, goal),
        "first cold loss": f"{cold[0][1]:.4f}",
        "first warm loss": f"{warm[0][1]:.4f}",
        "last warm loss": f"{warm[-1][1]:.4f}",
        "score": main,
        "base": f"{scores['cold'][task].base[main]:.3f}",
        **{name: f"{found[task].scores[main]:.3f}" for name, found in scores.items()},
    }


def choices() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("store")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--held", type=int, default=24, help="validation rows of each task")
    parser.add_argument("--limit", type=int, default=40, help="test rows of each task")
    parser.add_argument("--lr", type=float, default=0.06)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Trains both, scores them and the mean itself, and writes the table."""
    asked = choices()
    registry, base, recipe = Registry(asked.store), load_base("smollm2"), fleet_recipe(asked)
    middle = mean([registry.get(ref) for ref in registry.list(latest=True) if ref.name not in asked.tasks])
    everyone = [Tenant(task, TenantRows(str(asked.data / "train" / f"{task}.jsonl"))) for task in asked.tasks]
    tests = {task: read(asked.data / "test" / f"{task}.jsonl", recipe.columns, chat=True) for task in asked.tasks}
    rows = {task: replace(table, examples=table.examples[: asked.limit]) for task, table in tests.items()}
    losses: dict[str, Losses] = {}
    adapters: dict[str, dict[str, Adapter]] = {"mean alone": dict.fromkeys(asked.tasks, middle)}
    for name, start in (("cold", None), ("warm", middle)):
        adapters[name], losses[name] = trained(recipe, base, everyone, start)
    scores = {name: {one.name: one for one in fleet_scores(base, own, rows)} for name, own in adapters.items()}
    lines = [compared(task, losses, scores) for task in asked.tasks]
    print(*lines, sep="\n")
    if asked.output is not None:
        write_csv(asked.output / "warm-start.csv", lines)


if __name__ == "__main__":
    main()
