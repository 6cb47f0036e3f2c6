"""TrainingRun: an adapter that its tenant trains call by call. Session: a client that does so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any

from polyvera.jobs.database import decoded

CREATE, LOAD_RUN, LOAD = "create_model", "load_run", "load_weights"
FORWARD, FORWARD_BACKWARD, OPTIMIZER_STEP = "forward", "forward_backward", "optim_step"
SAVE, SAVE_FOR_SAMPLER = "save_weights", "save_weights_for_sampler"
FIRST_SEQ = 0  # of what makes a run; a client counts its calls from 1


@dataclass(frozen=True, slots=True)
class RunChoices:
    """What a run's creator chose. method: None is the server's. trained: the kinds of layers that may be trained."""

    rank: int | None = None
    seed: int | None = None
    method: str | None = None
    trained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run as the database knows it.

    number: in its session. saved_seq: the last call whose state is on disk. attempts: starts of the trainer since it
    last got further. method, rank: of what is trained, None until that is decided.
    """

    id: str
    tenant: str
    session: str
    number: int
    choices: RunChoices
    metadata: Mapping[str, Any]
    created_s: int
    seen_s: int
    ended_s: int | None
    saved_seq: int
    attempts: int
    method: str | None
    rank: int | None

    @classmethod
    def of(cls, row: Row) -> TrainingRun:
        """A row of the table of runs."""
        values = decoded(row, "choices", "metadata")
        chosen = values["choices"]
        return cls(**values | {"choices": RunChoices(**chosen | {"trained": tuple(chosen["trained"])})})


@dataclass(frozen=True, slots=True)
class TrainingSession:
    """A client's session as the database knows it. seen_s: when it was last heard of."""

    id: str
    tenant: str
    display_name: str | None
    metadata: Mapping[str, Any]
    created_s: int
    seen_s: int
    ended_s: int | None

    @classmethod
    def of(cls, row: Row) -> TrainingSession:
        """A row of the table of sessions."""
        return cls(**decoded(row, "metadata"))


@dataclass(frozen=True, slots=True)
class RunOperation:
    """One call of a run. answer: what it gave, None until then. error: why it failed. is_users: by whose fault."""

    run: str
    seq: int
    kind: str
    request: Mapping[str, Any]
    done_s: float | None = None
    answer: Mapping[str, Any] | None = None
    error: str | None = None
    is_users: bool = False

    @classmethod
    def of(cls, row: Row) -> RunOperation:
        """A row of the table of operations, without its rows and log-probabilities."""
        values = decoded(row, "request", "answer")
        names = ("run", "seq", "kind", "request", "done_s", "answer", "error")
        return cls(**{name: values[name] for name in names}, is_users=bool(row["is_users"]))

    @property
    def id(self) -> str:
        """By which a client asks for its answer."""
        return f"{self.run}:{self.seq}"


def run_id(session: str, number: int) -> str:
    """The id of a session's run, which the SDK makes itself, too."""
    return f"{session}:train:{number}"
