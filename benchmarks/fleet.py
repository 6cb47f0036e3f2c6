"""A fleet in mixed batches against the same tenants one after another: our own solo training, and PEFT's.

    python benchmarks/fleet.py [--tenants 32] [--examples 2 1] [--rounds 3] [--repeats 3] [--method vera] [--device cpu]

SmolLM2-135M with its real weights, VeRA of rank 256 on the query and value projections. Every tenant has prompts of 20
to 60 words and answers of 4 to 16, the same for all three. PEFT trains a fresh model for each tenant, in a plain loop
with AdamW, which is faster than its Trainer. All take turns; tokens are those that count, padding left out; start-up
(loading, injecting, tokenizing) is left out of the rates and shown apart.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from polyvera import Recipe, load_base
from polyvera.adapter.method import METHODS
from polyvera.data.batching import Collator
from polyvera.data.encoding import encode
from polyvera.model.config import pad_token
from polyvera.model.load import Base
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.tenants import Tenant, TenantRows
from polyvera.train.trainer import train

WORDS = [
    "order",
    "ship",
    "parcel",
    "late",
    "refund",
    "please",
    "the",
    "a",
    "for",
    "my",
    "of",
    "and",
    "to",
    "is",
    "not",
    "with",
    "blue",
    "red",
    "seven",
    "item",
]
SAMPLE = 4  # tenants that the one-after-another runs take a turn with
PEERS = {
    "vera": peft.VeraConfig(r=256, target_modules=["q_proj", "v_proj"]),
    "lora": peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
    "dora": peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], use_dora=True),
}


@dataclass
class Rate:
    """Tokens a second of each turn, and the seconds of start-up."""

    turns: list[float] = field(default_factory=list)
    start_up: list[float] = field(default_factory=list)


def tenants(num: int, num_rows: int) -> list[Tenant]:
    """Tenants with rows of their own."""
    found = []
    for i in range(num):
        rng = random.Random(i)
        rows = tuple(
            (k + 1, {"prompt": _words(rng, 20, 60), "completion": _words(rng, 4, 16)}) for k in range(num_rows)
        )
        found.append(Tenant(f"tenant-{i:03}", TenantRows(f"tenant-{i:03}", rows)))
    return found


def _words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


class Clock(TrainerCallback):
    """The seconds from the first step of a run to the end of its last."""

    def on_step_begin(self, args: object, state: object, control: object, **given: object) -> None:
        """Starts the clock at the first."""
        self.begun = getattr(self, "begun", time.perf_counter())

    def on_step_end(self, args: object, state: object, control: object, **given: object) -> None:
        """Reads the clock."""
        self.seconds = time.perf_counter() - self.begun


def fleet_turn(base: Base, recipe: Recipe, everyone: Sequence[Tenant], rate: Rate) -> float:
    """One fleet of all tenants; returns the share of padding."""
    result = train_fleet(recipe, everyone=everyone, base=base)
    rate.turns.append(result.traffic.tokens_per_s)
    rate.start_up.append(result.seconds - result.traffic.seconds)
    return result.traffic.padding_share


def solo_turn(base: Base, recipe: Recipe, everyone: Sequence[Tenant], rate: Rate) -> None:
    """Our own training of one tenant after another; the rows come from files, as a user's do."""
    import json
    import tempfile
    from pathlib import Path

    tokens, seconds, begun = 0, 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for tenant in everyone:
            path = Path(folder) / f"{tenant.name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for _, row in tenant.training.rows or ()))
            clock = Clock()
            solo = recipe.replaced(fleet=False, slots=None, batch_tokens=None, data=str(path))
            result = train(solo, base=base, progress=False, callbacks=[clock])
            tokens += sum(result.rows.lengths)
            seconds += clock.seconds
    rate.turns.append(tokens / seconds)
    rate.start_up.append(time.perf_counter() - begun - seconds)


def peft_turn(base: Base, recipe: Recipe, everyone: Sequence[Tenant], rate: Rate) -> None:
    """PEFT, a fresh model for each tenant."""
    tokens, seconds, begun = 0, 0.0, time.perf_counter()
    collate = Collator(pad_token(base.model, base.tokenizer))
    for tenant in everyone:
        rows = encode(tenant.tables(recipe).training, base.tokenizer, 512)
        model = peft.get_peft_model(base.model, PEERS[recipe.method]).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
        start = time.perf_counter()
        for first in range(0, len(rows), recipe.batch_size):
            batch = collate([rows[i] for i in range(first, min(first + recipe.batch_size, len(rows)))])
            batch = {k: t.to(base.model.device) for k, t in batch.items()}
            model(**batch, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
        tokens += sum(rows.lengths)
        model.unload()
    rate.turns.append(tokens / seconds)
    rate.start_up.append(time.perf_counter() - begun - seconds)


def measure(base: Base, asked: argparse.Namespace, examples: int) -> list[str]:
    """One row of the printed table."""
    method, num, rounds, repeats = asked.method, asked.tenants, asked.rounds, asked.repeats
    everyone = tenants(num, examples * rounds)
    recipe = Recipe(
        model="smollm2",
        data="in memory",
        method=method,
        fleet=True,
        slots=num,
        batch_size=examples,
        lr=METHODS[method].lr,
        max_steps=rounds,
        batch_tokens=asked.batch_tokens,
        **({} if METHODS[method].shares_basis else {"targets": ("q_proj", "v_proj"), "rank": 8}),
    )
    fleet, solo, other = Rate(), Rate(), Rate()
    padding = 0.0
    for repeat in range(repeats + 1):
        some = [everyone[(repeat * SAMPLE + i) % num] for i in range(SAMPLE)]
        padding = fleet_turn(base, recipe, everyone, fleet)
        solo_turn(base, recipe, some, solo)
        peft_turn(base, recipe, some, other)
    rates = [median(rate.turns[1:]) for rate in (fleet, solo, other)]
    bar = {2: "1.5", 1: "1.8"}.get(examples, "")
    row = [f"{method}, {num} x {examples}", *(f"{rate:.0f}" for rate in rates)]
    row += [f"{rates[0] / rates[1]:.2f}", f"{rates[0] / rates[2]:.2f}", bar, f"{padding:.1%}"]
    starts = (median(fleet.start_up) / num, median(solo.start_up) / SAMPLE, median(other.start_up) / SAMPLE)
    return [*row, " / ".join(f"{s:.2f}" for s in starts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=32)
    parser.add_argument("--examples", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--method", default="vera", choices=PEERS)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    base = load_base("smollm2")
    base.model.to(asked.device)
    device = (
        torch.cuda.get_device_name() if asked.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    table = Table(title=f"Tokens a second in training, SmolLM2-135M, {device}, torch {torch.__version__}")
    columns = ("tenants x examples a step", "fleet", "solo", "PEFT", "fleet/solo", "fleet/PEFT", "bar", "padding")
    for column in (*columns, "start-up s a tenant"):
        table.add_column(column)
    for examples in asked.examples:
        row = measure(base, asked, examples)
        print(*row, sep="  ", flush=True)
        table.add_row(*row)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
