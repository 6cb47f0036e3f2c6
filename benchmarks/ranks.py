"""Ranks: the best learning rate beside the reckoned one, score, bytes and processor time at each.

    python benchmarks/ranks.py minilm DATA.jsonl --test TEST.jsonl --columns text=text label=label --steps 60 --batch 8
    python benchmarks/ranks.py smollm2 DATA.jsonl --test TEST.jsonl --columns prompt=input completion=output

For each rank, the multiples of the reckoned rate train as slots of one bank, on the same rows in the same batches. The
score is that of the best by the loss on the test rows, which flatters every rank alike.
"""

from __future__ import annotations

import argparse
from collections import deque
from dataclasses import replace
from math import inf
from pathlib import Path
from time import process_time

from csv_table import write_csv

from polyvera import Recipe, load_base
from polyvera.data.packed_rows import PackedRows
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Fleet, views_for_gradients
from polyvera.train.fleet.journal import Journal
from polyvera.train.fleet.member import Member
from polyvera.train.preparation import adapted, class_names, encode_tables, meaning_in, read_tables
from polyvera.train.tenants import Tables

FP32 = 4
SCORES = ("accuracy", "exact_match", "rouge_l")


def line(recipe: Recipe, base: Base, tables: Tables, factors: list[float], limit: int) -> dict[str, object]:
    """What one rank gives."""
    assert tables.validation is not None
    rows, watched = encode_tables(recipe, tables, base)
    assert watched is not None
    held_out = PackedRows.of(watched)
    with adapted(recipe, base, len(factors)) as bank, views_for_gradients():
        assert bank is not None
        fleet = Fleet(recipe, base, bank, Journal(None, None), deque(), "", None, row=tables.training.row)
        every = [recipe.replaced(lr=factor * recipe.learning_rate) for factor in factors]
        packed = PackedRows.of(rows)
        slots = zip(every, bank.slots, strict=True)
        members = [fleet.seated(str(own.lr), slot, own, packed, held_out) for own, slot in slots]
        fleet.members, started = list(members), process_time()
        for _ in range(members[0].total):
            fleet.round()
        seconds = process_time() - started
        losses = losses_of(fleet, members)
        best = min(range(len(factors)), key=lambda i: losses[i])
        meaning = meaning_in(recipe, tables.training.task, tables.training.labels)
        slot = members[best].slot
        test = replace(tables.validation, examples=tables.validation.examples[:limit])
        found = evaluate(base.model, base.tokenizer, test, slot, meanings={slot: meaning})
        size = FP32 * (bank.layout.num_params - bank.layout.num_head_params)
    told = {f"loss at {factor:g} x": f"{loss:.3f}" for factor, loss in zip(factors, losses, strict=True)}
    score = {name: f"{found.scores[name]:.3f}" for name in SCORES if name in found.scores}
    step_ms = 1000 * seconds / members[0].total / len(factors)
    own = {"rank": recipe.rank, "bytes": size, "reckoned": f"{recipe.learning_rate:.3g}", **told}
    return {**own, "best": f"{factors[best]:g} x", **score, "processor ms a step": f"{step_ms:.0f}"}


def losses_of(fleet: Fleet, members: list[Member]) -> list[float]:
    """The loss of each on the test rows, infinite for who has left."""
    left = {id(m) for m in fleet.members}
    losses = fleet.losses_on(lambda member: list(member.held_out or ()))
    return [losses[m.index] if id(m) in left else inf for m in members]


def choices() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--test", required=True)
    parser.add_argument("--columns", nargs="*", default=[], help="our=theirs")
    parser.add_argument("--method", default="vera")
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64, 256, 1024])
    parser.add_argument("--factors", type=float, nargs="*", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--limit", type=int, default=100, help="test rows that are answered for the score")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """A line for each rank, and a table of them."""
    asked = choices()
    columns = dict(pair.split("=", 1) for pair in asked.columns)
    own = {"model": asked.model, "data": asked.data, "validation": asked.test, "columns": columns}
    recipe = Recipe(**own, method=asked.method, batch_size=asked.batch, max_steps=asked.steps)
    tables = read_tables(recipe)
    base = load_base(asked.model, task=tables.training.task, labels=tables.training.labels)
    tables = tables.labelled(class_names(base, tables.training))
    lines = []
    for rank in asked.ranks:
        lines.append(line(recipe.replaced(rank=rank), base, tables, asked.factors, asked.limit))
        print(lines[-1], flush=True)
    if asked.output is not None:
        write_csv(asked.output, lines)


if __name__ == "__main__":
    main()
