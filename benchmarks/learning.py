"""Learning on real tasks: methods side by side, with the base model and the majority answer beside them.

    python benchmarks/learning.py DATA [--tasks T ...] [--methods vera dvora lora] [--steps 60] [--model smollm2]

DATA is a folder with train/TASK.jsonl and test/TASK.jsonl of {"input", "output"[, "refs"]}. Each method trains with
its own default rank and learning rate on the same rows in the same order, through the model's chat template, and
answers the whole test split greedily.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polyvera import Recipe, eject, evaluate, load, load_base
from polyvera.adapter.method import METHODS
from polyvera.data.tables import read
from polyvera.train.trainer import train

COLUMNS = {"prompt": "input", "completion": "output"}
TASKS = (
    "task881_schema_guided_dstc8_classification",
    "task1623_disfl_qa_disfluent_question_classification",
    "task1195_disflqa_disfluent_to_fluent_conversion",
)
SCORES = ("exact_match", "rouge_l", "token_accuracy", "loss")


def row(who: str, scores: dict[str, float], trained: int, seconds: float) -> list[str]:
    """One printed row."""
    cost = [f"{trained:,}", f"{seconds:.0f}"] if trained else ["", ""]
    return [who, *(f"{scores[name]:.3f}" if name in scores else "" for name in SCORES), *cost]


def measured(folder: Path, task: str, chosen: argparse.Namespace) -> Table:
    """One task: the majority answer, the base model, each method."""
    test = folder / "test" / f"{task}.jsonl"
    rows = read(test, COLUMNS, chat=True)
    base = load_base(chosen.model)
    bare = evaluate(base.model, base.tokenizer, rows, 0).scores
    table = Table(title=f"{task}, {chosen.steps} steps of 8 rows")
    for column in ("", *SCORES, "trained", "train s"):
        table.add_column(column)
    table.add_row("majority answer", f"{bare.get('majority', 0):.3f}")
    table.add_row(*row("base model", bare, 0, 0))
    for method in chosen.methods:
        recipe = Recipe(
            model=chosen.model,
            data=str(folder / "train" / f"{task}.jsonl"),
            columns=COLUMNS,
            chat=True,
            method=method,
            lr=chosen.lr_factor * METHODS[method].lr,
            max_steps=chosen.steps,
            **({"targets": chosen.targets} if chosen.targets else {}),
        )
        result = train(recipe, base=base, progress=False)
        (slot,) = load(base.model, result.adapter)
        scores = evaluate(base.model, base.tokenizer, rows, slot).scores
        eject(base.model)
        print(task, method, scores, f"{result.seconds:.0f} s", flush=True)
        table.add_row(*row(f"{method} lr={recipe.learning_rate:g}", scores, result.num_trained, result.seconds))
    return table


def main() -> None:
    """Prints one table a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=["vera", "dvora", "lora"], choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lr-factor", type=float, default=1.0, help="times each method's own learning rate")
    parser.add_argument("--targets")
    chosen = parser.parse_args()
    for task in chosen.tasks:
        Console(width=140).print(measured(chosen.data, task, chosen))


if __name__ == "__main__":
    main()
