"""slot_sweep: one method at several rates, whose runs train as slots of one bank, on the same rows in the same batches.

Each slot is the run that train() makes with its rate, so what is compared does not depend on which of them made it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from polyvera.data.packed_rows import PackedRows
from polyvera.model.load import place
from polyvera.train.fleet.fleet import Fleet, views_for_gradients
from polyvera.train.fleet.journal import Journal
from polyvera.train.fleet.learning_rate import NO_SLOTS
from polyvera.train.fleet.member import Member
from polyvera.train.preparation import adapted, encode_tables, loaded, registry_of
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import rounds
from polyvera.train.schedule import seed_everything
from polyvera.train.warm_start import warm_start


@dataclass(frozen=True)
class SlotRun:
    """What came of one rate. eval_loss: the lowest validation loss, infinite where it diverged. seconds: its share."""

    lr: float
    eval_loss: float
    num_params: int
    num_head_params: int
    num_steps: int
    seconds: float


def takes_slots(recipe: Recipe) -> bool:
    """Whether runs of this recipe that differ in their rate alone can be slots of one bank, and end as train() ends."""
    return (
        recipe.validation is not None and not rounds(recipe.stored) and not any(no(recipe) for no in NO_SLOTS.values())
    )


def slot_sweep(recipe: Recipe, rates: Sequence[float]) -> list[SlotRun]:
    """The recipe at each of these rates. Raises what train() raises before its first step."""
    started = time.monotonic()
    seed_everything(recipe.run_seed)
    start = warm_start(recipe, registry_of(recipe))
    tables, base = loaded(recipe)
    rows, watched = encode_tables(recipe, tables, base)
    assert watched is not None
    training, held_out = PackedRows.of(rows), PackedRows.of(watched)
    place(base)
    with adapted(recipe, base, len(rates)) as bank, views_for_gradients():
        assert bank is not None
        own = recipe.replaced(lr=rates[0])
        fleet = Fleet(own, base, bank, Journal(None, None), deque(), "", start, row=tables.training.row)
        pairs = zip(rates, bank.slots, strict=True)
        members = [fleet.seated(f"{lr:g}", slot, own.replaced(lr=lr), training, held_out) for lr, slot in pairs]
        done = _trained(fleet, members)
        share = (time.monotonic() - started) / len(rates)
        size, head = bank.num_trained, bank.layout.num_head_params
        losses = [member.best.loss if member.name in done else inf for member in members]
        found = zip(rates, losses, members, strict=True)
        return [SlotRun(lr, loss, size, head, member.step, round(share, 1)) for lr, loss, member in found]


def _trained(fleet: Fleet, members: Sequence[Member]) -> set[str]:
    """Trains all to their ends; the names of those that came there."""
    fleet.members, done = list(members), set[str]()
    while fleet.members:
        fleet.round()
        fleet.look()
        done |= {member.name for member in fleet.members if member.is_done}
        fleet.members = [member for member in fleet.members if not member.is_done]
    return done
