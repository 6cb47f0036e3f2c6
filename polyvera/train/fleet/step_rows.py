"""StepRows: which rows each optimizer step of a run takes, in the order of the solo loop, and its learning rate."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from polyvera.data.batching import order
from polyvera.data.packed_rows import PackedRows
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import lr_factor, num_steps


class StepRows:
    """The steps of a recipe over rows.

    epoch_steps, total: of an epoch, and of the run. factor: what multiplies the learning rate at a step, from 0.
    """

    def __init__(self, recipe: Recipe, rows: PackedRows) -> None:
        self._recipe, self._rows = recipe, rows
        self.epoch_steps, self.total = num_steps(recipe, len(rows), 1)
        self.factor = lr_factor(recipe, self.total)
        self._known: tuple[int, list[int]] = (-1, [])  # the order of one epoch

    def of(self, step: int) -> list[dict[str, Any]]:
        """The rows of a step, from 0."""
        return [self._rows[i] for i in self._numbers(step)]

    def tokens_until(self) -> list[int]:
        """How many tokens the rows of all steps up to each have."""
        lengths = self._rows.lengths
        return [*accumulate(sum(lengths[i] for i in self._numbers(step)) for step in range(self.total))]

    def _numbers(self, step: int) -> list[int]:
        epoch, at = divmod(step, self.epoch_steps)
        size = self._recipe.batch_size * self._recipe.accumulate
        return self._order(epoch)[at * size : (at + 1) * size]

    def _order(self, epoch: int) -> list[int]:
        if self._known[0] != epoch:
            lengths = self._rows.lengths if self._recipe.group_by_length else None
            order_of = order(len(self._rows), self._recipe.run_seed, epoch, lengths, self._recipe.batch_size)
            self._known = epoch, order_of
        return self._known[1]
