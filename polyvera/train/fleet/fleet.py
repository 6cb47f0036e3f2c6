"""Fleet: an adapter for every tenant, trained in batches that mix them over one frozen model.

A round gives every tenant in a slot its next optimizer step. Each adapter is the one that its tenant's rows alone would
have given; who has made all steps leaves, and the next in line takes the slot.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import extract
from polyvera.adapter.pinned_memory import to_device
from polyvera.adapter.route import route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.data.batching import Collator, packed
from polyvera.data.packed_rows import PackedRows
from polyvera.data.target_tokens import TargetTokens
from polyvera.errors import DivergedError, message_of
from polyvera.model.inference import evaluating
from polyvera.model.load import Base
from polyvera.model.task import LM, TASKS, Task
from polyvera.train.fleet.journal import FINISHED, QUARANTINED, SKIPPED, Journal, Outcome
from polyvera.train.fleet.member import Member
from polyvera.train.fleet.optimizer import SlotAdamW
from polyvera.train.fleet.slot_mask import slot_mask
from polyvera.train.fleet.traffic import Traffic
from polyvera.train.head_unit import as_learned, begin, in_unit
from polyvera.train.loss import num_items, row_losses
from polyvera.train.preparation import check_head_lr, encode_tables, said
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import NUM_ROUNDING_ROWS, rounded
from polyvera.train.tenants import Tables, Tenant, labelled
from polyvera.train.trained_numbers import NUM_COMPARED, check_loss, check_numbers
from polyvera.train.warm_start import check_begin

SLOTS = 32
BATCH_TOKENS = {"cpu": 768}  # enough to keep a CPU's cores busy, and few enough to hold rows of like length
GPU_BATCH_TOKENS = 8192
SAVE_EVERY = 25
RECENT = 10

Rows = list[tuple[Member, dict[str, Any], float]]
Watch = Callable[["Fleet"], None]


@dataclass
class Fleet:
    """The tenants that train, those that wait, and the bank that they share.

    base: the model, with the bank in it. journal: what became of each tenant. kind: of rows. start: the adapter that
    all begin from, None for the identity. row: what all rows are for. own: settings of a tenant's own, by its name.
    on_tables: is called with each tenant's rows before they are trained on. sites: the layers that a tenant adapts, by
    its name; all of the bank's by default.
    """

    recipe: Recipe
    base: Base
    bank: Bank
    journal: Journal
    waiting: deque[Tenant]
    kind: str
    start: Adapter | None = None
    members: list[Member] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    row: Task = TASKS[LM]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    on_tables: Callable[[Tables], None] = lambda tables: None
    sites: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = SlotAdamW(self.bank, self.recipe)
        self.collate = Collator.of(self.base.model, self.base.tokenizer)
        assert self.bank.spec is not None
        self.spec = self.bank.spec
        check_head_lr(self.recipe, self.base.model, has_head=bool(self.bank.heads))
        self.fingerprint = fingerprint(self.base.model)
        self.journal.keep_base(self.fingerprint)
        check_begin(self.start, self.base.model, self.bank)
        if self.start is not None:
            self.bank.put(self.bank.first, self.start)  # raises where it does not fit
        self.states = self.journal.states()
        self.waiting = deque(sorted(self.waiting, key=lambda tenant: tenant.name not in self.states))

    def run(self, watch: Watch) -> None:
        """Rounds until every tenant has left."""
        self.admit()
        with views_for_gradients():
            while self.members:
                self.round()
                self.look()
                self.settle()
                self.admit()
                if self.traffic.rounds % (self.recipe.save_every or SAVE_EVERY) == 0:
                    self.journal.save(self.members)
                watch(self)

    def admit(self) -> None:
        """Gives every free slot to the next tenant in line whose rows can be used."""
        taken = {member.slot for member in self.members}
        free = [slot for slot in self.bank.slots if slot not in taken]
        while free and self.waiting:
            tenant = self.waiting.popleft()
            try:
                self.members.append(self._admitted(tenant, free[0]))
            except Exception as error:  # whatever one tenant's rows raise ends no other's training
                self.journal.record(Outcome(tenant.name, SKIPPED, message_of(error)))
            else:
                free.pop(0)

    def round(self) -> None:
        """One optimizer step for every member, its rows in batches with the others'."""
        started = time.monotonic()
        self.base.model.train()
        losses = self._surviving(lambda member: member.next_rows(), torch.Tensor.backward, self.traffic)
        found = torch.stack([losses, self.optimizer.norms()]).tolist()  # the only time that a round waits for a GPU
        self._step(*found)
        self.traffic.rounds += 1
        self.traffic.seconds += time.monotonic() - started

    def _step(self, losses: list[float], norms: list[float]) -> None:
        """A step for every member whose loss and norm are numbers; the others leave. Both by the bank's own index."""
        for member in list(self.members):
            problem = member.problem(losses[member.index], norms[member.index])
            if problem:
                self._leave(member, Outcome(member.name, QUARANTINED, problem, "", len(member.rows), member.step))
        indices = [member.index for member in self.members]
        factors = [member.factor(member.step) for member in self.members]
        scales = [member.scale for member in self.members]
        self.optimizer.step(indices, factors, [norms[i] for i in indices], scales)
        for member in self.members:
            member.advance(losses[member.index])

    def look(self) -> None:
        """The validation loss of every member that is due, in mixed batches."""
        if not any(member.is_due for member in self.members):
            return
        losses = self.losses_on(_watched_rows)
        for member in (member for member in self.members if member.is_due):
            loss = losses[member.index]
            member.eval_losses.append((member.step, loss))
            member.best.take(loss, lambda slot=member.slot: self.bank.extract(slot).flat)  # type: ignore[misc]

    def losses_on(self, rows_of: Callable[[Member], Sequence[dict[str, Any]]]) -> list[float]:
        """The mean loss of each member's rows in mixed batches, in nats, by the bank's own index; nobody moves."""
        with evaluating(self.base.model):
            found: list[float] = self._surviving(rows_of, lambda loss: None, Traffic()).tolist()
        return found

    def settle(self) -> None:
        """Those who are done leave with their adapters."""
        done = [(member, self._adapter(member)) for member in self.members if member.is_done]
        done = [(member, adapter) for member, adapter in done if self._can_be_kept(member, adapter)]
        rounding = self._round(done) if done and self.journal.rounds else {}
        for member, exact in done:
            adapter = replace(exact, scores={**exact.scores, **rounding.get(member.index, {})})
            losses = {name: adapter.scores.get(name) for name in ("train_loss", "eval_loss", "rounding_loss")}
            rows, step = len(member.rows), member.step
            self._leave(member, Outcome(member.name, FINISHED, "", "", rows, step, **losses, adapter=adapter))

    def _can_be_kept(self, member: Member, adapter: Adapter) -> bool:
        """Whether a tenant's numbers are sound; it leaves where not, since its last step may have broken them."""
        try:
            self._check(member, adapter)
        except DivergedError as error:
            self._leave(member, Outcome(member.name, QUARANTINED, str(error), "", len(member.rows), member.step))
            return False
        return True

    def _check(self, member: Member, adapter: Adapter) -> None:
        """Raises DivergedError for numbers that cannot be kept, and for an adapter far worse than the base."""
        learned, lr, rows = as_learned(adapter, member.rows.span), member.recipe.learning_rate, _first_rows(member)
        check_numbers([learned.flat], lr)
        self.bank.put(member.slot, learned)

        def loss(slot: int) -> float:
            with evaluating(self.base.model), torch.no_grad():
                weighted = self._weighted(replace(member, slot=slot), rows[:NUM_COMPARED])
                return float(self._losses(weighted, lambda loss: None, Traffic())[member.index])

        bare = None if learned.layout.head else partial(loss, BASE_SLOT)
        check_loss(member.losses, partial(loss, member.slot), bare, lr)

    def _round(self, adapters: Sequence[tuple[Member, Adapter]]) -> dict[int, dict[str, float]]:
        """The losses with the numbers as they will be stored, which take the exact ones' place; by the bank's index."""

        def losses(rows_of: Callable[[Member], Sequence[dict[str, Any]]]) -> list[float]:
            rows = [row for member, _ in adapters for row in self._weighted(member, rows_of(member))]
            with evaluating(self.base.model), torch.no_grad():
                return self._losses(rows, lambda loss: None, Traffic()).tolist()

        for member, adapter in adapters:
            self.bank.put(member.slot, as_learned(adapter, member.rows.span))
        before = losses(_first_rows)
        for member, adapter in adapters:
            self.bank.put(member.slot, as_learned(rounded(adapter, self.journal.stored), member.rows.span))
        after, watched = losses(_first_rows), losses(lambda member: list(member.held_out or ()))
        return {
            m.index: {"rounding_loss": after[m.index] - before[m.index]}
            | ({} if m.held_out is None else {"eval_loss": watched[m.index]})
            for m, _ in adapters
        }

    def _surviving(
        self, rows_of: Callable[[Member], Sequence[dict[str, Any]]], then: Callable[[Tensor], None], traffic: Traffic
    ) -> Tensor:
        """The losses of each member's rows; who raises when it is computed alone leaves, the others go on without it.

        Raises what the mixed batches raise where no member alone does.
        """
        try:
            rows = [row for member in self.members for row in self._weighted(member, rows_of(member))]
            return self._losses(rows, then, traffic)
        except Exception:
            broken = [(member, problem) for member in self.members if (problem := self._problem(member, rows_of))]
            if not broken:
                raise
        for member, problem in broken:
            self._leave(member, Outcome(member.name, QUARANTINED, problem, "", len(member.rows), member.step))
        self.optimizer.grads.zero_()
        return self._surviving(rows_of, then, traffic)

    def _problem(self, member: Member, rows_of: Callable[[Member], Sequence[dict[str, Any]]]) -> str:
        """What a member's rows raise when nobody else's are in the batch, or ''."""
        try:
            with torch.no_grad():
                self._losses(self._weighted(member, rows_of(member)), lambda loss: None, Traffic())
        except Exception as error:  # whatever one tenant's rows raise ends no other's training
            return f"step {member.step + 1}: {message_of(error)}"
        return ""

    def _weighted(self, member: Member, rows: Sequence[dict[str, Any]]) -> Rows:
        """A member's rows with the weight that makes the sum of their losses its mean."""
        count = sum(num_items(row, self.row) for row in rows)
        return [(member, row, 1 / count) for row in rows]

    def _losses(self, rows: Rows, then: Callable[[Tensor], None], traffic: Traffic) -> Tensor:
        """The weighted sum of each slot's row losses, (num_slots,), in mixed batches; `then` gets each batch's sum."""
        device = self.bank.flat.device
        totals = torch.zeros(self.bank.num_slots, device=device)
        lengths = [len(row["input_ids"]) for _, row, _ in rows]
        units = self._units(rows)
        sizes = [len(unit) * max(lengths[i] for i in unit) for unit in units]
        for together in packed(sizes, self.recipe.batch_tokens or BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS)):
            numbers = [i for unit in together for i in units[unit]]
            batch = [rows[i] for i in numbers]
            groups = torch.tensor([unit for unit in together for _ in units[unit]])
            inputs, targets = self._inputs([row for _, row, _ in batch])
            weights = to_device(torch.tensor([weight for _, _, weight in batch]), device)
            several = len(inputs["input_ids"]) // len(batch)
            with route([member.slot for member, _, _ in batch] * several):
                losses = row_losses(self.base.model, inputs, targets, self.row, groups) * weights
                then(losses.sum())
            own = to_device(torch.tensor([member.index for member, _, _ in batch]), device)
            totals.index_add_(0, own, losses.detach())
            traffic.count([lengths[i] for i in numbers])
        return totals

    def _units(self, rows: Rows) -> list[list[int]]:
        """Which rows are computed together: each alone, or a member's batches where texts are compared."""
        size = self.recipe.batch_size if self.row.embeds else 1
        own: dict[int, list[int]] = {}
        for i, (member, _, _) in enumerate(rows):
            own.setdefault(member.index, []).append(i)
        return [mine[first : first + size] for mine in own.values() for first in range(0, len(mine), size)]

    def _inputs(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], TargetTokens]:
        """A batch on the bank's device, its labels apart."""
        device, batch = self.bank.flat.device, self.collate(rows)
        targets = TargetTokens.of(batch.pop("labels"), self.row.predicts)
        if bool(batch["attention_mask"].all()):
            del batch["attention_mask"]  # it says nothing, but transformers would wait for a GPU to find that out
        return {name: to_device(tensor, device) for name, tensor in batch.items()}, targets.to(device)

    def _admitted(self, tenant: Tenant, slot: int) -> Member:
        self.journal.name_of(tenant.name)
        tables = labelled(tenant.tables(self.recipe), self.kind, self.base)
        encoded, watched = encode_tables(self.recipe, tables, self.base)
        self.on_tables(tables)
        rows, held_out = PackedRows.of(encoded), None if watched is None else PackedRows.of(watched)
        recipe = self.recipe.replaced(**self.own.get(tenant.name, {}))
        member = self.seated(tenant.name, slot, recipe, rows, held_out, tables.training.labels)
        if tenant.name in self.sites:
            mask = slot_mask(self.bank.layout, self.sites[tenant.name]).to(self.bank.flat.device)
            self.optimizer.moments.masks[member.index] = mask
        state = self.states.pop(tenant.name, None)
        if state is not None:
            member.restore(state)
        return member

    def seated(
        self,
        name: str,
        slot: int,
        recipe: Recipe,
        rows: PackedRows,
        held_out: PackedRows | None,
        labels: tuple[str, ...] = (),
    ) -> Member:
        """A member at its beginning, in a slot that is its own from now on."""
        self.bank.clear(slot)
        begin(self.bank, slot, self.base, rows.span, self.start)
        index = self.bank.slots.index(slot)
        self.optimizer.reset(index)
        return Member(name, slot, recipe, rows, held_out, labels, index, self.optimizer)

    def _adapter(self, member: Member) -> Adapter:
        scores = {"train_loss": float(np.mean(member.losses[-RECENT:]))}
        if member.held_out is not None and member.best.numbers is not None:
            scores["eval_loss"] = member.best.loss
        adapter = extract(self.bank, member.slot, None, scores)
        flat = adapter.flat if member.best.numbers is None else member.best.numbers
        adapter = in_unit(replace(adapter, base=self.fingerprint, flat=flat), member.rows.span)
        return said(member.recipe, adapter, self.kind, member.labels)

    def _leave(self, member: Member, outcome: Outcome) -> None:
        self.journal.record(outcome)
        self.members.remove(member)


@contextmanager
def views_for_gradients() -> Iterator[None]:
    """Rounds without torch's warning of gradients that are views, as they are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        yield


def _first_rows(member: Member) -> list[dict[str, Any]]:
    return [member.rows[i] for i in range(min(NUM_ROUNDING_ROWS, len(member.rows)))]


def _watched_rows(member: Member) -> list[dict[str, Any]]:
    return list(member.held_out or ()) if member.is_due else []
