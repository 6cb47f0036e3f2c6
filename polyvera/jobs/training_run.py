"""TrainingRun: an adapter that its tenant trains call by call. Session: a client that does so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any

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
        values: dict[str, Any] = dict(row)
        chosen = json.loads(row["choices"])
        values["choices"] = RunChoices(**chosen | {"trained": tuple(chosen["trained"])})
        return cls(**values | {"metadata": json.loads(row["metadata"])})


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
        values: dict[str, Any] = dict(row)
        return cls(**values | {"metadata": json.loads(row["metadata"])})


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
        answer = None if row["answer"] is None else json.loads(row["answer"])
        values = {name: row[name] for name in ("run", "seq", "kind", "done_s", "error")}
        return cls(**values, request=json.loads(row["request"]), answer=answer, is_users=bool(row["is_users"]))

    @property
    def id(self) -> str:
        """By which a client asks for its answer."""
        return f"{self.run}:{self.seq}"


def run_id(session: str, number: int) -> str:
    """The id of a session's run, which the SDK makes itself, too."""
    return f"{session}:train:{number}"
