"""A database with two tenants' files."""

import json
from pathlib import Path

from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import FineTuningJob, JobChoices
from polyvera.jobs.training_policy import TrainingPolicy

ROWS = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2}"} for i in range(12)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def opened(folder: Path, **choices) -> FineTuning:
    return FineTuning.open(TrainingPolicy(folder=folder, **choices))


def upload(tuning: FineTuning, tenant: str, data: bytes = DATA) -> str:
    return tuning.files.add(tenant, "rows.jsonl", "fine-tune", data).id


def create(tuning: FineTuning, tenant: str, **choices) -> FineTuningJob:
    return tuning.jobs.create(tenant, "tiny", upload(tuning, tenant), None, JobChoices(**{"seed": 0, **choices}))
