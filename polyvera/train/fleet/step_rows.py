"""StepRows: which rows each optimizer step of a run takes, in the order of the solo loop, and its learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np

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
        self._lengths = np.array(rows.lengths, np.int64)
        self._known: tuple[int, list[int]] = (-1, [])  # the order of one epoch

    def of(self, step: int) -> list[dict[str, Any]]:
        """The rows of a step, from 0."""
        return [self._rows[i] for i in self._numbers(step)]

    def tokens_until(self, step: int) -> int:
        """How many tokens the rows of all steps before that one have."""
        epoch, at = divmod(step, self.epoch_steps)
        begun = self._order(epoch)[: at * self._size] if at else []
        return epoch * int(self._lengths.sum()) + int(self._lengths[begun].sum())

    @property
    def _size(self) -> int:
        return self._recipe.batch_size * self._recipe.accumulate

    def _numbers(self, step: int) -> list[int]:
        epoch, at = divmod(step, self.epoch_steps)
        return self._order(epoch)[at * self._size : (at + 1) * self._size]

    def _order(self, epoch: int) -> list[int]:
        if self._known[0] != epoch:
            lengths = self._rows.lengths if self._recipe.group_by_length else None
            found = order(len(self._rows), self._recipe.run_seed, epoch, lengths, self._recipe.batch_size)
            self._known = epoch, found
        return self._known[1]
