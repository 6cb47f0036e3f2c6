"""The bodies of fine-tuning requests, as OpenAI defines them, and the query of a page of a list."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import Field, model_validator

from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED, JobChoices
from polyvera.server.fields import ModelName
from polyvera.server.neutral_fields import INTEGRATIONS
from polyvera.server.request_body import RequestBody

MAX_PAGE = 100
AUTO = "auto"
Auto = Literal["auto"]
FileId = Annotated[str, Field(max_length=80)]
Suffix = Annotated[str, Field(max_length=40, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class Hyperparameters(RequestBody):
    """What a job's creator may choose; auto is the server's choice."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(ge=1e-3, le=1e3)] = "auto"


class Supervised(RequestBody):
    """The choices of supervised training."""

    hyperparameters: Hyperparameters = Hyperparameters()


class DpoHyperparameters(Hyperparameters):
    """Those of DPO. beta: how far the likelihood of an answer may leave the base's."""

    beta: Auto | Annotated[float, Field(gt=0, le=10)] = "auto"


class Dpo(RequestBody):
    """The choices of training by preferences."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class TrainingMethod(RequestBody):
    """How to train."""

    type: Literal["supervised", "dpo"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="after")
    def _own(self) -> TrainingMethod:
        other = DPO if self.type == SUPERVISED else SUPERVISED
        if getattr(self, other) is not None:
            raise ValueError(f"{other} goes with type {other!r}, and type is {self.type!r}")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those of its type."""
        own = getattr(self, self.type)
        default = Supervised() if self.type == SUPERVISED else Dpo()
        return (default if own is None else own).hyperparameters  # type: ignore[no-any-return]


class FineTuningBody(RequestBody):
    """/v1/fine_tuning/jobs."""

    neutral = INTEGRATIONS

    model: ModelName
    training_file: FileId
    validation_file: FileId | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    hyperparameters: Hyperparameters | None = None
    method: TrainingMethod | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> FineTuningBody:
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("hyperparameters and method both say how to train: give method alone")
        return self

    @property
    def chosen(self) -> Hyperparameters:
        """The hyperparameters, wherever they stand."""
        return self.hyperparameters or (self.method or TrainingMethod(type="supervised")).hyperparameters

    @property
    def choices(self) -> JobChoices:
        """What the job keeps of it."""
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        given = (self.chosen.n_epochs, self.chosen.batch_size, self.chosen.learning_rate_multiplier)
        numbers = [None if one == AUTO else one for one in given]
        objective = SUPERVISED if self.method is None else self.method.type
        beta = getattr(self.chosen, "beta", AUTO)
        own = {"objective": objective, "beta": None if beta == AUTO else beta}
        return JobChoices(seed, self.suffix, *numbers, self.metadata, **own)  # type: ignore[arg-type]
