"""What the routes work with shares one database."""

import pytest
from some_jobs import DATA, create, opened, upload
from some_runs import run_of

from polyvera.errors import QuotaError
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import JobChoices
from polyvera.jobs.job_queue import JobQueue, Progress
from polyvera.jobs.training_run import FORWARD_BACKWARD


def test_files_and_jobs_are_of_one_folder(tmp_path):
    tuning = opened(tmp_path / "training")
    job = create(tuning, "acme")
    again = FineTuning.open(tuning.policy)
    assert again.jobs.get("acme", job.id) == job and again.files.get("acme", job.training_file).tenant == "acme"


@pytest.mark.parametrize(
    ("quota", "most"),
    [("max_tenant_bytes", 2 * len(DATA)), ("max_jobs", 2), ("max_daily_tokens", 100), ("max_runs", 1)],
)
def test_what_a_tenant_has_used_counts_after_a_restart(tmp_path, quota, most):
    tuning = opened(tmp_path, **{quota: most})
    first = create(tuning, "acme")
    create(tuning, "acme")
    run = run_of(tuning, "acme", 0)
    queue = JobQueue(tuning.database)
    queue.claim()
    queue.record([Progress(first.id, 1, 100, {"train_loss": 1.0})])
    again = FineTuning.open(tuning.policy)
    refused = {
        "max_tenant_bytes": lambda: upload(again, "acme"),
        "max_jobs": lambda: again.jobs.create("acme", "tiny", first.training_file, None, JobChoices(0)),
        "max_daily_tokens": lambda: again.operations.submit("acme", run, None, FORWARD_BACKWARD, {}, b"rows"),
        "max_runs": lambda: run_of(again, "acme", 1),
    }
    with pytest.raises(QuotaError):
        refused[quota]()
    create(again, "globex")
    run_of(again, "globex")
