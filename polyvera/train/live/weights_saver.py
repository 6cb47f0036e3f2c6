"""WeightsSaver: what runs save: their whole state in a file, or an adapter in the store to sample with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from polyvera.errors import DataError, NotFoundError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import FINE_TUNED, OPEN_TENANT
from polyvera.jobs.sampler_table import sampler_id
from polyvera.jobs.saved_weights import SAMPLER, TRAINING, SavedWeights, WeightsTable, path_of
from polyvera.jobs.training_run import TrainingRun
from polyvera.store.registry import Registry
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.run_state import RunState

FOLDER = "weights"
ID_CHARS = 12
NUM_UNNAMED = 16  # of each run, the last that it sampled with
Asked = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightsSaver:
    """Saves for tenants, max_bytes of each."""

    database: Database
    registry: Registry
    max_bytes: int

    @property
    def table(self) -> WeightsTable:
        """What is saved."""
        return WeightsTable(self.database)

    def save(self, run: TrainingRun, seq: int, asked: Asked, state: RunState) -> SavedWeights:
        """A run's state, to go on from. Raises ConflictError for a name that is taken, QuotaError."""
        path = path_of(run.id, TRAINING, asked["name"])
        file, former = f"{FOLDER}/{uuid4().hex}.safetensors", self.table.former(path)
        kept = replace(state, grad=None)
        kept.write(self.database.folder / file)
        made = replace(_weights(run, seq, asked, TRAINING), file=file, num_bytes=kept.num_bytes)
        try:
            self.table.add(made, self.max_bytes, replace=asked["overwrite"])
        except BaseException:
            (self.database.folder / file).unlink(missing_ok=True)
            raise
        self._forget(former)
        return made

    def publish(
        self, run: TrainingRun, seq: int, asked: Asked, state: RunState, trainer: LiveTrainer
    ) -> tuple[SavedWeights, str | None]:
        """A run's adapter, to sample with, and the id of the sampling session that it opens, if any."""
        number = asked["sampling_session_seq_id"]
        sampler = None if number is None else sampler_id(run.session, number)
        first = f"{FINE_TUNED}/{run.tenant or OPEN_TENANT}/run-{run.session[:ID_CHARS]}-{run.number}"
        num_bytes = state.weight.nbytes
        made = replace(_weights(run, seq, asked, SAMPLER), num_bytes=num_bytes, is_named=asked["is_named"])
        former = self.table.former(made.path)
        ref = self.registry.put(first, trainer.adapter(replace(state, grad=None)))
        try:
            self.table.add(replace(made, adapter=str(ref)), self.max_bytes, sampler)
        except BaseException:
            self.registry.remove(str(ref))
            raise
        self._forget(former)
        return replace(made, adapter=str(ref)), sampler

    def load(self, run: TrainingRun, path: str) -> RunState:
        """The state that a tenant saved. Raises UnknownObjectError, DataError for what is only to sample with."""
        return RunState.read(self.file(self.table.get(run.tenant, path)))

    def file(self, saved: SavedWeights) -> Path:
        """Where a state lies. Raises DataError for what is only to sample with."""
        if saved.file is None:
            raise DataError(f"{saved.path} is to sample with: training goes on from what save_state() saved")
        return self.database.folder / saved.file

    def tidy(self) -> None:
        """Removes what has expired, and what nobody can ask for."""
        for saved in self.table.unwanted(NUM_UNNAMED):
            self._forget(saved)
            self.table.remove(saved.path)

    def _forget(self, saved: SavedWeights | None) -> None:
        """Removes the file and the adapter of what is saved no longer."""
        if saved is not None and saved.adapter is not None:
            with suppress(NotFoundError):  # it was removed by hand
                self.registry.remove(saved.adapter, with_aliases=True)
        if saved is not None and saved.file is not None:
            (self.database.folder / saved.file).unlink(missing_ok=True)


def _weights(run: TrainingRun, seq: int, asked: Asked, kind: str) -> SavedWeights:
    now = int(time.time())
    ttl = asked["ttl_seconds"]
    return SavedWeights(
        path_of(run.id, kind, asked["name"]),
        run.tenant,
        run.id,
        seq,
        kind,
        asked["name"],
        None,
        None,
        0,
        run.method or "",
        run.rank or 0,
        asked["user_metadata"],
        now,
        None if ttl is None else now + ttl,
    )
