"""MixedPass: the passes of many runs in the same batches, forward and backward once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.pinned_memory import to_device
from polyvera.adapter.route import route
from polyvera.data.batching import packed, padded
from polyvera.data.target_logprobs import target_logprobs
from polyvera.data.target_tokens import TargetTokens
from polyvera.model.load import Base
from polyvera.train.fleet.traffic import Traffic
from polyvera.train.live.datum import Datum
from polyvera.train.live.operation import Pass, PassResult
from polyvera.train.live.token_loss import ROWS, Objective

Pace = Callable[[float], None]
Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RoutedRow:
    """One row of a batch: which pass it is of, its place there, and the slot that its run is in."""

    owner: int
    place: int
    row: Datum
    slot: int
    objective: Objective
    backward: bool


@dataclass
class MixedPass:
    """Passes over one base with one bank.

    pad_id: what short rows are filled up with. batch_tokens: the most tokens of a batch with its padding. pace: called
    with the seconds that each batch took. is_deterministic: the rows of a pass are in batches of their own, so that
    what it gives is bit for bit the same, whatever is computed beside it.
    """

    base: Base
    bank: Bank
    pad_id: int
    batch_tokens: int
    traffic: Traffic = field(default_factory=Traffic)
    pace: Pace = lambda seconds: None
    is_deterministic: bool = False

    def run(self, passes: Sequence[tuple[int, Pass]]) -> list[PassResult]:
        """The result of each (slot, pass); those with a backward pass add to the gradients of their slots."""
        rows = [
            RoutedRow(owner, place, row, slot, one.objective, one.backward)
            for owner, (slot, one) in enumerate(passes)
            for place, row in enumerate(one.rows)
        ]
        totals, found = [0.0] * len(passes), dict[tuple[int, int], Numbers]()
        for is_trained in (True, False):
            own = [row for row in rows if row.backward == is_trained]
            for batch in self._batches(own):
                self._timed(batch, is_trained, totals, found)
        return [
            PassResult(totals[i], tuple(found[i, place] for place in range(len(one.rows))))
            for i, (_, one) in enumerate(passes)
        ]

    def _batches(self, rows: Sequence[RoutedRow]) -> Iterator[list[RoutedRow]]:
        groups = [rows]
        if self.is_deterministic:
            groups = [list(own) for _, own in groupby(rows, key=lambda row: row.owner)]
        for group in groups:
            for numbers in packed([max(len(row.row), len(row.row.positions)) for row in group], self.batch_tokens):
                yield [group[i] for i in numbers]

    def _timed(
        self, batch: Sequence[RoutedRow], is_trained: bool, totals: list[float], found: dict[tuple[int, int], Numbers]
    ) -> None:
        started = time.monotonic()
        with torch.set_grad_enabled(is_trained):
            losses, logprobs = self._batch(batch)
            if is_trained:
                losses.sum().backward()  # type: ignore[no-untyped-call]
        for routed, loss, own in zip(batch, losses.tolist(), logprobs, strict=True):
            totals[routed.owner] += loss
            found[routed.owner, routed.place] = own
        self.traffic.count([len(row.row) for row in batch])
        seconds = time.monotonic() - started
        self.traffic.seconds += seconds
        self.pace(seconds)

    def _batch(self, batch: Sequence[RoutedRow]) -> tuple[Tensor, list[Numbers]]:
        """The loss of each row, (rows,), and the log-probabilities of each row's targets."""
        targets = _targets([row.row for row in batch]).to(self.bank.flat.device)
        with route([row.slot for row in batch]):
            logprobs = target_logprobs(self.base.model, self._inputs([row.row for row in batch]), targets)
        losses = torch.zeros_like(logprobs)
        ends = np.cumsum([len(row.row.positions) for row in batch])
        for objective, numbers in _by_objective(batch).items():
            at = to_device(_spans(numbers, ends), logprobs.device)
            inputs = self._loss_inputs(objective, [batch[i].row for i in numbers])
            losses = losses.index_put((at,), objective.losses(logprobs[at], inputs))
        parts = np.split(logprobs.detach().float().cpu().numpy(), ends[:-1])
        return targets.summed(losses, len(batch)), [part.copy() for part in parts]

    def _inputs(self, rows: Sequence[Datum]) -> dict[str, Tensor]:
        ids = padded([row.tokens.tolist() for row in rows], self.pad_id)
        found = {"input_ids": ids}
        if len({len(row) for row in rows}) > 1:
            found["attention_mask"] = padded([[1] * len(row) for row in rows], 0)
        return {name: to_device(tensor, self.bank.flat.device) for name, tensor in found.items()}

    def _loss_inputs(self, objective: Objective, rows: Sequence[Datum]) -> Mapping[str, Tensor]:
        names, device = objective.row.inputs, self.bank.flat.device
        every = {name: np.concatenate([row.inputs[name] for row in rows]) for name in names}
        found = {name: to_device(torch.from_numpy(values), device) for name, values in every.items()}
        owners = np.repeat(np.arange(len(rows)), [len(row.positions) for row in rows])
        return found | {ROWS: to_device(torch.from_numpy(owners), device)}


def _targets(rows: Sequence[Datum]) -> TargetTokens:
    width = max(map(len, rows))
    labels = np.concatenate([row.targets for row in rows])
    owners = np.repeat(np.arange(len(rows)), [len(row.positions) for row in rows])
    places = np.concatenate([row.positions for row in rows])
    found, rows_of, positions = map(torch.from_numpy, (labels, owners, owners * width + places))
    return TargetTokens(found, rows_of, positions)


def _by_objective(batch: Sequence[RoutedRow]) -> dict[Objective, list[int]]:
    """The rows of each objective, by number."""
    found: dict[Objective, list[int]] = {}
    for number, row in enumerate(batch):
        found.setdefault(row.objective, []).append(number)
    return found


def _spans(numbers: Sequence[int], ends: NDArray[np.int64]) -> Tensor:
    """Where the targets of these rows are among all."""
    spans = [np.arange(ends[i - 1] if i else 0, ends[i]) for i in numbers]
    return torch.from_numpy(np.concatenate(spans))
