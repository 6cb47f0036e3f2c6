"""FineTuningJob: what a tenant asked to be trained, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from sqlite3 import Row
from typing import Any

from polyvera.jobs.database import decoded

QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
ACTIVE = (QUEUED, RUNNING, PAUSED)

SUPERVISED, DPO = "supervised", "dpo"
FINE_TUNED = "ft"  # the first part of the names of what tenants trained; the second is the tenant's own
OPEN_TENANT = "open"  # of a server without keys
ID_CHARS = 8


@dataclass(frozen=True, slots=True)
class JobChoices:
    """What a job's creator chose. None is auto: the server's own choice. lr_multiplier: of the method's own rate.

    objective: what the rows are trained by, SUPERVISED or DPO. beta: how far DPO may leave the base.
    """

    seed: int
    suffix: str | None = None
    num_epochs: int | None = None
    batch_size: int | None = None
    lr_multiplier: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    objective: str = SUPERVISED
    beta: float | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed. param: the field of the request that was wrong."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class FineTuningJob:
    """A job as the database knows it. step: the last that was made. attempts: starts since it last got further."""

    id: str
    tenant: str
    status: str
    model: str
    training_file: str
    validation_file: str | None
    choices: JobChoices
    created_s: int
    finished_s: int | None
    error: JobError | None
    fine_tuned_model: str | None
    trained_tokens: int
    step: int
    num_steps: int | None
    planned_tokens: int
    attempts: int

    @classmethod
    def of(cls, row: Row) -> FineTuningJob:
        """A row of the table of jobs."""
        values = decoded(row, "choices", "error")
        error = None if values["error"] is None else JobError(**values["error"])
        return cls(**values | {"choices": JobChoices(**values["choices"]), "error": error})

    @property
    def adapter_name(self) -> str:
        """Under which its adapters are published."""
        suffix = "" if self.choices.suffix is None else f"{self.choices.suffix}-"
        return f"{FINE_TUNED}/{self.tenant or OPEN_TENANT}/{suffix}{self.id.rpartition('-')[2][:ID_CHARS]}"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. type: 'message' or 'metrics'."""

    number: int
    job: str
    created_s: int
    level: str
    type: str
    message: str
    data: Mapping[str, Any]

    @classmethod
    def of(cls, row: Row) -> JobEvent:
        """A row of the table of events."""
        return cls(**decoded(row, "data"))


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """An adapter that a job published at a step. model: its reference."""

    number: int
    job: str
    step: int
    created_s: int
    model: str
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, row: Row) -> JobCheckpoint:
        """A row of the table of checkpoints."""
        return cls(**decoded(row, "metrics"))


def owner_of(name: str) -> str | None:
    """The tenant that trained the adapter of that name here, None for all other names."""
    first, _, rest = name.partition("/")
    return rest.partition("/")[0] if first == FINE_TUNED and rest else None
