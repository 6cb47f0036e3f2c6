"""The bodies of fine-tuning requests, as OpenAI defines them, and the query of a page of a list."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import Field, model_validator

from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED, JobChoices
from polyvera.jobs.upload_table import MAX_PARTS
from polyvera.server.fields import AUTO_OR_NUMBER, NUMBER, TEXT, ModelName
from polyvera.server.neutral_fields import INTEGRATIONS, UPLOAD
from polyvera.server.request_body import RequestBody

MAX_PAGE = 100
AUTO = "auto"
Auto = Annotated[Literal["auto"], TEXT]
FileId = Annotated[str, Field(max_length=80)]
Suffix = Annotated[str, Field(max_length=40, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class UploadBody(RequestBody):
    """/v1/uploads: a file that will come in parts."""

    neutral = UPLOAD

    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: Literal["fine-tune"]
    bytes: Annotated[int, Field(ge=1, le=2**40)]

    @model_validator(mode="after")
    def _named(self) -> UploadBody:
        if not self.filename.isprintable():
            raise ValueError("filename must be printable")
        return self


class CompleteBody(RequestBody):
    """/v1/uploads/ID/complete: the parts in their order."""

    part_ids: Annotated[list[FileId], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None


class Hyperparameters(RequestBody):
    """What a job's creator may choose; auto is the server's choice."""

    n_epochs: Annotated[Auto | Annotated[int, Field(ge=1, le=10_000), NUMBER], AUTO_OR_NUMBER] = "auto"
    batch_size: Annotated[Auto | Annotated[int, Field(ge=1, le=256), NUMBER], AUTO_OR_NUMBER] = "auto"
    learning_rate_multiplier: Annotated[Auto | Annotated[float, Field(ge=1e-3, le=1e3), NUMBER], AUTO_OR_NUMBER] = (
        "auto"
    )

    @property
    def beta_or_auto(self) -> str | float:
        """DPO's, where there is one."""
        return AUTO


class Supervised(RequestBody):
    """The choices of supervised training."""

    hyperparameters: Hyperparameters = Hyperparameters()


class DpoHyperparameters(Hyperparameters):
    """Those of DPO. beta: how far the likelihood of an answer may leave the base's."""

    beta: Annotated[Auto | Annotated[float, Field(gt=0, le=10), NUMBER], AUTO_OR_NUMBER] = "auto"

    @property
    def beta_or_auto(self) -> str | float:
        """DPO's."""
        return self.beta


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
        return (default if own is None else own).hyperparameters


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
        chosen = self.chosen
        epochs, batch_size, multiplier, beta = (
            None if one == AUTO else one
            for one in (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier, chosen.beta_or_auto)
        )
        objective = SUPERVISED if self.method is None else self.method.type
        return JobChoices(seed, self.suffix, epochs, batch_size, multiplier, self.metadata, objective, beta)  # type: ignore[arg-type]
