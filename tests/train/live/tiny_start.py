"""What a trainer's process over a tiny base is started with, and a job for it."""

import json
import time

from tiny_folder import save_tiny
from tiny_models import counting_rows

from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import JobChoices
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.train.live.trainer_main import TrainerStart

ENDS_S = 120.0


def tiny_start(folder):
    policy = TrainingPolicy(train=True, folder=folder / "training", rank=4, slots=2)
    return TrainerStart(str(save_tiny(folder / "base")), str(folder / "store"), policy)


def new_job(start):
    tuning = FineTuning.open(start.policy)
    data = "".join(json.dumps(row) + "\n" for row in counting_rows(4)).encode()
    file = tuning.files.add("acme", "rows.jsonl", "fine-tune", data)
    return tuning, tuning.jobs.create("acme", "tiny", file.id, None, JobChoices(0))


def wait(tuning, job):
    ends = time.monotonic() + ENDS_S
    while (found := tuning.jobs.get("acme", job.id)).status in ("queued", "running"):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found
