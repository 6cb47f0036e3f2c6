"""The trainer's process: loads the base, and trains the jobs of a folder until its standard input ends."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from threading import Event, Thread
from typing import IO

import torch

from polyvera.jobs.database import Database
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.model.load import load_base, place
from polyvera.model.task import LM, TASKS
from polyvera.store.file_lock import exclusive
from polyvera.store.registry import Registry
from polyvera.train.live.job_worker import JobWorker
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.run_trainers import RunTrainers
from polyvera.train.live.run_worker import RunWorker
from polyvera.train.preparation import adapted, check_mixes, check_router
from polyvera.train.recipe import Recipe

LOCK = ".trainer.lock"
IDLE_S = 0.2
MAX_NICE = 19
NICE_STEP = 1.25  # Linux gives a thread so much less of a core for each number, beside one at 0


@dataclass(frozen=True, slots=True)
class TrainerStart:
    """What a trainer's process is started with. store: the URL or folder that it publishes to."""

    model: str
    store: str
    policy: TrainingPolicy

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> TrainerStart:
        """The inverse of `to_json`."""
        given = json.loads(line)
        policy = given["policy"]
        return cls(given["model"], given["store"], TrainingPolicy(**{**policy, "folder": Path(policy["folder"])}))

    @property
    def recipe(self) -> Recipe:
        """What every job starts from."""
        policy = self.policy
        return Recipe(
            model=self.model, data=str(policy.folder), method=policy.method, rank=policy.rank, targets=policy.targets
        )


def train_jobs(start: TrainerStart, ended: Event, on_ready: Callable[[], None] = lambda: None) -> None:
    """Trains the jobs of a folder until `ended` is set, and saves then what trains; one process at a time does.

    on_ready: called once the base is loaded.
    """
    database = Database(start.policy.folder)
    with exclusive(start.policy.folder / LOCK):
        base = place(load_base(start.model))
        check_mixes(base)
        check_router(base, TASKS[LM])
        with adapted(start.recipe, base, start.policy.slots) as bank:
            assert bank is not None
            policy, registry = start.policy, Registry(start.store)
            num_cores = torch.get_num_threads() if base.model.device.type == "cpu" else None
            pace = resting(policy.share, num_cores)
            parked = policy.folder / "parked"
            apart = policy.deterministic
            trainer = LiveTrainer(base, bank, model=start.model, folder=parked, pace=pace, is_deterministic=apart)
            jobs = JobWorker(trainer, database, registry, start.recipe, policy)
            runs = RunWorker(RunTrainers(trainer, policy.slots, parked, pace), database, registry, policy)
            on_ready()
            work(jobs, runs, ended)


def work(jobs: JobWorker, runs: RunWorker, ended: Event) -> None:
    """Trains jobs and runs in the same rounds until `ended` is set, and saves then what trains."""
    while not ended.is_set():
        runs.take()
        is_busy = jobs.work()
        runs.work()
        if not (is_busy or runs.is_busy):
            runs.wait(ended, IDLE_S)
    jobs.save()
    runs.close()


def resting(share: float, num_cores: int | None) -> Callable[[float], None]:
    """Waits after each batch, so that this process takes that part of the time of so many cores.

    num_cores: None where a batch has a device to itself while it lasts. A batch that takes long because others use the
    cores has had less of them, and the wait after it is shorter.
    """
    before = time.process_time()

    def rest(seconds: float) -> None:
        nonlocal before
        taken = seconds if num_cores is None else (time.process_time() - before) / num_cores
        time.sleep(max(0.0, taken / share - seconds))
        before = time.process_time()

    return rest


def nice_for(share: float) -> int:
    """How nice a thread is that gets about this part of a core beside another that always computes."""
    return min(MAX_NICE, round(log((1 - share) / share, NICE_STEP))) if share < 1 / 2 else 0


def main(given: IO[str]) -> None:
    """given: one line of TrainerStart, then nothing until the trainer is to end."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    start, ended = TrainerStart.from_json(given.readline()), Event()
    if hasattr(os, "nice"):
        os.nice(nice_for(start.policy.share))  # who waits for an answer goes first

    def watch() -> None:
        given.read()
        ended.set()

    Thread(target=watch, daemon=True).start()
    train_jobs(start, ended)


if __name__ == "__main__":
    main(sys.stdin)
