"""Member: one tenant in its slot, with rows, step count and learning rate of its own.

What it does in a step is what the solo loop does: the next rows in the solo order, the gradient of their mean loss,
clipped over this slot's numbers alone, and one step of AdamW. A slot that has no rows in a batch does not move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from polyvera.data.packed_rows import PackedRows
from polyvera.errors import DataError
from polyvera.train.fleet.optimizer import SlotAdamW
from polyvera.train.fleet.step_rows import StepRows
from polyvera.train.recipe import Recipe


@dataclass
class Best:
    """The lowest validation loss, the slot's numbers there, and how many evaluations since had none lower."""

    loss: float = inf
    since: int = 0
    numbers: Tensor | None = None

    def take(self, loss: float, numbers: Callable[[], Tensor]) -> None:
        """Compares a new validation loss with the best one."""
        if loss < self.loss:
            self.loss, self.since, self.numbers = loss, 0, numbers()
        else:
            self.since += 1


@dataclass
class Member:
    """A tenant that trains.

    index: the bank's own of its slot. losses: of each step so far, in nats. eval_losses: (step, validation loss).
    """

    name: str
    slot: int
    recipe: Recipe
    rows: PackedRows
    held_out: PackedRows | None
    labels: tuple[str, ...]
    index: int
    optimizer: SlotAdamW
    step: int = 0
    losses: list[float] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    best: Best = field(default_factory=Best)

    def __post_init__(self) -> None:
        self.steps = StepRows(self.recipe, self.rows)
        self.epoch_steps, self.total, self.factor = self.steps.epoch_steps, self.steps.total, self.steps.factor

    @property
    def scale(self) -> float:
        """Its own learning rate in that of the optimizer's recipe."""
        return self.recipe.learning_rate / self.optimizer.recipe.learning_rate

    @cached_property
    def eval_every(self) -> int:
        """Steps from one evaluation to the next."""
        return self.recipe.eval_every or min(self.epoch_steps, self.total)

    @property
    def is_done(self) -> bool:
        """Whether all steps are made, or patience is at an end."""
        patience = self.recipe.early_stopping
        return self.step >= self.total or (patience is not None and self.best.since >= patience)

    @property
    def is_due(self) -> bool:
        """Whether the validation rows are to be looked at after this step."""
        return self.held_out is not None and (self.step % self.eval_every == 0 or self.step == self.total)

    def next_rows(self) -> list[dict[str, Any]]:
        """The rows of the next step, in the order in which the solo loop takes them."""
        return self.steps.of(self.step)

    def problem(self, loss: float, norm: float) -> str:
        """Why the step that these belong to can't be made, or ''. norm: of the gradient."""
        if not isfinite(loss):
            return f"its loss is {loss} at step {self.step + 1}"
        return "" if isfinite(norm) else f"its gradient is {norm} at step {self.step + 1}"

    def advance(self, loss: float) -> None:
        """Counts a step that was made."""
        self.losses.append(loss)
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name."""
        found: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64), "rows": self._digest}
        found |= self.optimizer.state(self.index)
        found["eval_losses"] = torch.tensor(self.eval_losses, dtype=torch.float64).reshape(-1, 2)
        found["best"] = torch.tensor([self.best.loss, self.best.since], dtype=torch.float64)
        return found if self.best.numbers is None else found | {"numbers": self.best.numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises DataError where the rows are others."""
        if not torch.equal(state["rows"], self._digest):
            raise DataError(f"the rows of {self.name!r} have changed since the resumed run began")
        self.losses = state["losses"].tolist()
        self.step = len(self.losses)
        self.eval_losses = [(int(step), loss) for step, loss in state["eval_losses"].tolist()]
        loss, since = state["best"].tolist()
        self.best = Best(loss, int(since), state.get("numbers"))
        self.optimizer.restore(self.index, state, self.step)

    @cached_property
    def _digest(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self.rows.sha256)), dtype=torch.uint8)
