"""A café teaches SmolLM2-135M to write its tickets: an adapter is trained, stored, used beside the bare model, counted.

    python examples/demo.py [--steps 120] [--quick]

Every figure that is printed is measured in this run or computed from the model's shapes.
"""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the imports that follow: optional libraries warn there about parts that they lack and nothing here uses.
logging.disable(logging.WARNING)

from measure import Measured, alone, published, quiet, tried
from orders import Order, orders, write
from rich.console import Console
from rich.table import Table

from polyvera import Recipe, Registry, cost, generate, load, load_base
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.model.load import locate
from polyvera.model.shapes import model_shapes
from polyvera.plan import GIB, bytes_text

NAME = "cafe/tickets"
STORE = "store"
TRAINING, HELD_OUT = "orders.jsonl", "held-out.jsonl"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LR = 0.06  # given, so that what is timed is the run alone, without the sweep that would choose it
NUM_SHOTS = 3
EXAMPLE = r"Order: Two large lattes with oat milk and a, no, two scones to go\nTicket:"
NUM_SHOWN = 6
COSTS = (
    "file: bytes on disk in fp32, and how many times those of the first row. peak memory: the most that the training "
    "process held, with Python and the model in it. one step: the fastest of the same first batches. ~: not run, but "
    "extrapolated from one step."
)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True, slots=True)
class Answers:
    """The first lines that the model wrote for the same orders: bare, bare with examples before it, adapted."""

    bare: list[str]
    shown: list[str]
    adapted: list[str]
    seconds: float


def main() -> None:
    """The whole demonstration."""
    began = time.perf_counter()
    chosen = arguments()
    quiet()
    folder = Path(chosen.folder)
    folder.mkdir(parents=True, exist_ok=True)
    test, training = cut(chosen.steps * chosen.batch_size, chosen.num_test)
    write(folder / HELD_OUT, test)
    model = prepared(chosen.model)
    recipe = Recipe(
        model=chosen.model,
        data=str(write(folder / TRAINING, training)),
        targets=TARGETS,
        lr=LR,
        batch_size=chosen.batch_size,
        group_by_length=True,
        max_steps=chosen.steps,
    )
    show_task(test[0], len(training), len(test))
    show_plan(recipe, model)
    registry = Registry(folder / STORE)
    ours = alone(published, recipe, chosen.trial, str(folder / STORE), NAME)
    show_stored(registry)
    answers = answered(model, registry, training, test)
    show_answers(test, answers)
    show_scores(test, answers)
    show_costs([ours, *rivals(recipe, chosen.trial)])
    show_next(registry, time.perf_counter() - began)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of the adapter")
    parser.add_argument("--trial", type=int, default=6, help="steps to time of every way to train")
    parser.add_argument("--num-test", type=int, default=20, help="held-out orders to answer")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--model", default="smollm2", help="a folder, or the name of a wheel's model")
    parser.add_argument("--folder", default="runs/demo", help="where the orders and the registry are written")
    parser.add_argument("--quick", action="store_true", help="only a few steps, to see that every part works")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.steps, chosen.trial, chosen.num_test = 3, 2, 4
    return chosen


def cut(num_training: int, num_test: int) -> tuple[list[Order], list[Order]]:
    """(test, training): no ticket of the one is in the other."""
    every = orders(num_test + num_training)
    return every[:num_test], every[num_test:]


def prepared(model: str) -> str:
    """The model's folder; a model in a wheel is converted at the first call and cached."""
    console.rule("[bold]The base model")
    began = time.perf_counter()
    with console.status(f"finding {model}, and converting it if that was not done before"):
        folder = locate(model)
    console.print(f"{model} is in {folder} ({time.perf_counter() - began:.0f} s)")
    return folder


def rivals(recipe: Recipe, num_steps: int) -> list[Measured]:
    """LoRA of its own rank and full fine-tuning: a few steps on the same batches."""
    same = {name: getattr(recipe, name) for name in ("model", "data", "batch_size", "group_by_length")}
    choices: dict[str, dict[str, Any]] = {"LoRA": {"method": "lora", "targets": TARGETS}, "a full copy": {"full": True}}
    found = []
    for name, choice in choices.items():
        with console.status(f"timing {num_steps} steps of {name}"):
            found.append(alone(tried, Recipe(**same, **choice, max_steps=num_steps)))
    return found


def answered(model: str, registry: Registry, training: list[Order], test: list[Order]) -> Answers:
    """Answers of the bare and of the adapted model, in batches that mix rows of both."""
    base = load_base(model)
    (slot,) = load(base.model, registry.get(NAME))
    shots = "\n\n".join(order.prompt + order.completion for order in training[:NUM_SHOTS])
    bare = [order.prompt for order in test]
    prompts = [*bare, *(f"{shots}\n\n{prompt}" for prompt in bare), *bare]
    slots = [BASE_SLOT] * (2 * len(test)) + [slot] * len(test)
    longest = 1 + max(len(base.tokenizer(order.completion)["input_ids"]) for order in test)
    began = time.perf_counter()
    with console.status("answering"):
        texts = generate(base.model, base.tokenizer, prompts, slots=slots, max_new_tokens=longest, batch_size=20)
    lines = [first_line(text) for text in texts]
    first, second = len(test), 2 * len(test)
    return Answers(lines[:first], lines[first:second], lines[second:], time.perf_counter() - began)


def first_line(text: str) -> str:
    """The text before the first line break: a bare model continues with orders of its own."""
    return text.strip().partition("\n")[0].strip()


def num_right(lines: list[str], test: list[Order]) -> int:
    """How many tickets are exactly right."""
    return sum(line == order.ticket for line, order in zip(lines, test, strict=True))


def show_task(order: Order, num_training: int, num_test: int) -> None:
    """What the model is to learn."""
    console.rule("[bold]The task")
    console.print(f"A customer says  {order.said}\nThe kitchen gets [bold]{order.ticket}[/bold]")
    console.print(f"{num_training} orders to learn from, {num_test} held-out ones to answer; no ticket is in both.")


def show_plan(recipe: Recipe, model: str) -> None:
    """What it will cost, from the model's configuration alone."""
    console.rule("[bold]Plan, train, store")
    shapes = model_shapes(model, recipe.spec())
    planned = cost(recipe.spec(), shapes.sites, shapes.num_params, base_dtype="float32")
    console.print(
        f"planned: {planned.method} of rank {planned.rank} on {len(shapes.sites)} layers, "
        f"{planned.num_params:,} numbers to train beside {shapes.num_params:,} frozen ones, "
        f"{planned.stored_bytes:,} bytes to store"
    )


def show_stored(registry: Registry) -> None:
    """The adapter's name, version and file."""
    ref = registry.resolve(NAME)
    console.print(f"stored:  {ref.name}@{ref.version}, {ref.num_bytes:,} bytes, {ref.path}")


def show_answers(test: list[Order], answers: Answers) -> None:
    """The same orders, side by side."""
    console.rule("[bold]With and without")
    table = Table(show_lines=True)
    for column in ("the customer says", "bare model", "with the adapter", "the ticket"):
        table.add_column(column, ratio=3 if column == "the customer says" else 2, overflow="fold")
    for i, order in enumerate(test[:NUM_SHOWN]):
        color = "green" if answers.adapted[i] == order.ticket else "red"
        table.add_row(order.said, answers.bare[i], f"[{color}]{answers.adapted[i]}[/{color}]", order.ticket)
    console.print(table)


def show_scores(test: list[Order], answers: Answers) -> None:
    """How many of all held-out tickets are right."""
    ways = {
        "bare model": answers.bare,
        f"bare model, {NUM_SHOTS} examples in every prompt": answers.shown,
        "with the adapter": answers.adapted,
    }
    table = Table("tickets exactly right", "of " + str(len(test)))
    for way, lines in ways.items():
        table.add_row(way, str(num_right(lines, test)))
    console.print(table)
    console.print(
        f"{3 * len(test)} answers in {answers.seconds:.1f} s, with and without the adapter in the same batches."
    )


def show_costs(runs: list[Measured]) -> None:
    """Numbers, bytes, memory and seconds, each as measured; only the time of the unfinished runs is extrapolated."""
    console.rule("[bold]What it cost")
    ours = runs[0]
    table = Table("")
    for column in ("trained", "file", "in 1 GiB", "peak memory", "one step", f"{ours.num_steps} steps"):
        table.add_column(column, justify="right")
    for one in runs:
        whole = f"{ours.total_s * one.step_s / ours.step_s:.0f} s"
        table.add_row(
            one.what,
            f"{one.num_trained:,}",
            f"{bytes_text(one.stored_bytes)}, {one.stored_bytes / ours.stored_bytes:,.0f}x",
            f"{GIB // one.stored_bytes:,}",
            bytes_text(one.peak_bytes),
            f"{one.step_s:.2f} s",
            whole if one is ours else f"~{whole}",
        )
    console.print(table)
    console.print(COSTS, style="dim")


def show_next(registry: Registry, seconds: float) -> None:
    """Commands to try next."""
    console.rule(f"[bold]Done in {seconds:.0f} s")
    held_out = Path(registry.url).parent / HELD_OUT
    for verb, more in (("show", ""), ("eval", f" --data {held_out}"), ("generate", f" -p $'{EXAMPLE}'")):
        console.print(f".venv/bin/polyvera {verb} {NAME} --store {registry.url}{more}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
