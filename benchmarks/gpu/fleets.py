"""32 tenants in one fleet against PEFT, which trains them one after another."""

from __future__ import annotations

import random
from statistics import median
from types import SimpleNamespace
from typing import Any

import fleet as cpu
from shapes import NAMES, make_tokenizer
from transformers import LlamaForCausalLM

from polyvera import Recipe
from polyvera.model.load import Base
from polyvera.train.tenants import Tenant, TenantRows

EXAMPLES = 2
PROMPT, COMPLETION = 96, 31  # with the end token 128


def tenants(num: int, num_rows: int, vocabulary: int) -> list[Tenant]:
    """Tenants with rows of their own, all of 128 tokens."""
    found = []
    for i in range(num):
        rng = random.Random(i)
        texts = [
            [" ".join(f"w{rng.randrange(2, vocabulary)}" for _ in range(n)) for n in (PROMPT, COMPLETION)]
            for _ in range(num_rows)
        ]
        rows = tuple((k + 1, {"prompt": a, "completion": b}) for k, (a, b) in enumerate(texts))
        found.append(Tenant(f"tenant-{i:03}", TenantRows(f"tenant-{i:03}", rows)))
    return found


def row(model: LlamaForCausalLM, shape: str, num: int, steps: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of a fleet and of PEFT, medians of `repeats` turns after one that does not count."""
    base = Base(model, make_tokenizer(model))
    everyone = tenants(num, EXAMPLES * steps, model.config.vocab_size)
    recipe = Recipe(
        model=shape,
        data="in memory",
        fleet=True,
        slots=num,
        batch_size=EXAMPLES,
        lr=0.06,
        max_steps=steps,
    )
    ours, theirs = cpu.Rate(), cpu.Rate()
    for turn in range(repeats + 1):
        cpu.fleet_turn(base, recipe, everyone, ours)
        cpu.peft_turn(base, recipe, everyone[turn : turn + cpu.SAMPLE], theirs)
    rates = SimpleNamespace(ours=median(ours.turns[1:]), peft=median(theirs.turns[1:]))
    return {
        "what": f"fleet, {NAMES[shape]}, {num} tenants x {EXAMPLES} rows x {PROMPT + COMPLETION + 1} tokens",
        "tokens/s": rates.ours,
        "PEFT tokens/s": rates.peft,
        "ours/PEFT": rates.ours / rates.peft,
        "bar": "ours/PEFT >= 8",
    }
