"""What a run may ask of the trainer, in the order in which it asks: passes, optimizer steps, its state."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from polyvera.errors import DataError
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.live.datum import Datum
from polyvera.train.live.run_state import RunState
from polyvera.train.live.token_loss import Objective

BELOW = {"beta1": 1.0, "beta2": 1.0}


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass over rows, and the backward pass, which adds to the run's gradient, unless backward is False.

    is_base: of the bare base, without a backward pass. Raises DataError for no rows, and for rows that lack what the
    loss needs.
    """

    rows: tuple[Datum, ...]
    objective: Objective = field(default_factory=Objective)
    backward: bool = True
    is_base: bool = False

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError("a pass has no rows")
        if self.is_base and self.backward:
            raise DataError("the base is not trained: backward must be False")
        for row in self.rows:
            self.objective.check(row.inputs)


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One step of AdamW with the gradient so far, which is zero afterwards. max_norm: None clips nothing."""

    learning_rate: float
    settings: AdamSettings = field(default_factory=AdamSettings)
    max_norm: float | None = None

    def __post_init__(self) -> None:
        for name, value in {"learning_rate": self.learning_rate, **asdict(self.settings)}.items():
            below = BELOW.get(name, np.inf)
            if not 0 <= value < below:
                raise DataError(f"{name}={value} must be a number from 0 up, and less than {below}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise DataError(f"max_norm={self.max_norm} must be more than 0, or None for no clipping")


@dataclass(frozen=True, slots=True)
class TakeState:
    """Asks for the run's state, a copy."""


@dataclass(frozen=True, slots=True)
class SetState:
    """Puts a state in the place of the run's. with_moments: else the moments and the step count begin again."""

    state: RunState
    with_moments: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class PassResult:
    """loss: the sum over all rows. logprobs: of each row's targets, in nats, in the order of the rows."""

    loss: float
    logprobs: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """step: how many the run has made. norm: of the gradient before it was clipped."""

    step: int
    norm: float


Operation = Pass | OptimizerStep | TakeState | SetState
Result = PassResult | StepResult | RunState | None
