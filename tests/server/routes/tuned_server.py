"""A server that trains for two tenants, with a worker in a thread of this process in place of the trainer's own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from openai import OpenAI
from tiny_serve import make_tokenizer
from tiny_server import TEMPLATE, Served, fronted, make_base

from polyvera.adapter.inject import inject
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.live.job_worker import JobWorker
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.run_trainers import RunTrainers
from polyvera.train.live.run_worker import RunWorker
from polyvera.train.live.trainer_main import work
from polyvera.train.recipe import Recipe

ROWS = [
    {"messages": [{"role": "user", "content": "the true thing"}, {"role": "assistant", "content": "is this"}]},
    {"messages": [{"role": "user", "content": "this thing"}, {"role": "assistant", "content": "is true"}]},
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass(frozen=True)
class Tuned:
    """The server, and a client of each tenant."""

    at: Served
    acme: OpenAI
    globex: OpenAI
    tuning: FineTuning

    def upload(self, client: OpenAI, rows: list[Any] | None = None) -> str:
        given = io.BytesIO(jsonl(ROWS if rows is None else rows))
        return client.files.create(file=("rows.jsonl", given), purpose="fine-tune").id


@contextmanager
def tuned(root: Path, *, is_trained: bool = True, **choices: Any) -> Iterator[Tuned]:
    policy = TrainingPolicy(train=True, folder=root / "training", **choices)
    tuning, base = FineTuning.open(policy), _base()
    with fronted(root, base, {}, with_keys=True, fine_tuning=tuning) as at:
        assert at.keys is not None
        clients = [at.openai(at.keys.add(tenant, [f"{tenant}/*"])[0]) for tenant in ("acme", "globex")]
        ended = Event()
        thread = Thread(target=_train, args=(root, policy, ended))
        if is_trained:
            thread.start()
        try:
            yield Tuned(at, *clients, tuning)
        finally:
            ended.set()
            if is_trained:
                thread.join()


def _base() -> Base:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Base(make_base(), tokenizer)


def _train(root: Path, policy: TrainingPolicy, ended: Event) -> None:
    base = _base()
    recipe = Recipe(model="tiny", data="memory", rank=4, batch_size=2)
    bank = inject(base.model, recipe.spec(), 4)
    trainer = LiveTrainer(base, bank)
    database, registry = Database(policy.folder), Registry(root / "store")
    jobs = JobWorker(trainer, database, registry, recipe, policy)
    work(jobs, RunWorker(RunTrainers(trainer, 4, root / "parked"), database, registry, policy), ended)
