"""A tenant's jobs: created within its quota, moved as their status allows, and reached by the tenant alone."""

import pytest
from some_jobs import create, opened, upload

from polyvera.errors import ConflictError, QuotaError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import JobChoices
from polyvera.jobs.job_queue import JobQueue, Progress


def test_a_job_is_listed_with_its_events(tmp_path):
    tuning = opened(tmp_path)
    jobs = [create(tuning, "acme") for _ in range(3)]
    ids = [job.id for job in jobs][::-1]
    assert [job.id for job in tuning.jobs.list("acme", 10)] == ids
    assert [job.id for job in tuning.jobs.list("acme", 1, ids[0])] == ids[1:2]
    [event] = tuning.jobs.events("acme", ids[0], 10)
    assert ids[0] in event.message and (event.type, event.level) == ("message", "info")


def test_a_job_moves_as_its_status_allows(tmp_path):
    tuning = opened(tmp_path)
    job = create(tuning, "acme")
    moves = [("resume", None), ("pause", "paused"), ("pause", None), ("resume", "queued"), ("cancel", "cancelled")]
    for verb, status in moves:
        if status is None:
            with pytest.raises(ConflictError, match=f"to {verb} it"):
                tuning.jobs.move("acme", job.id, verb)
        else:
            assert tuning.jobs.move("acme", job.id, verb).status == status
    for verb in ("cancel", "pause", "resume"):
        with pytest.raises(ConflictError):
            tuning.jobs.move("acme", job.id, verb)
    assert tuning.jobs.get("acme", job.id).finished_s


def test_another_tenant_reaches_nothing(tmp_path):
    tuning = opened(tmp_path)
    job = create(tuning, "acme")
    jobs, id = tuning.jobs, job.id
    assert jobs.list("globex", 10) == []
    reaches = [
        lambda: jobs.get("globex", id),
        lambda: jobs.move("globex", id, "cancel"),
        lambda: jobs.events("globex", id, 10),
        lambda: jobs.events_since("globex", id, 0, 10),
        lambda: jobs.checkpoints("globex", id, 10),
        lambda: jobs.list("globex", 10, id),
    ]
    for reach in reaches:
        with pytest.raises(UnknownObjectError, match="Could not find"):
            reach()
    with pytest.raises(UnknownObjectError, match="No such File"):
        jobs.create("globex", "tiny", job.training_file, None, JobChoices(0))
    with pytest.raises(UnknownObjectError, match="No such File"):
        jobs.create("globex", "tiny", upload(tuning, "globex"), job.training_file, JobChoices(0))
    assert jobs.get("acme", id).status == "queued"


def test_a_tenant_has_so_many_jobs_at_once(tmp_path):
    tuning = opened(tmp_path, max_jobs=2)
    first = create(tuning, "acme")
    create(tuning, "acme")
    with pytest.raises(QuotaError, match="2 of your jobs have not ended"):
        create(tuning, "acme")
    create(tuning, "globex")
    tuning.jobs.move("acme", first.id, "cancel")
    create(tuning, "acme")


def test_a_tenant_has_so_many_tokens_a_day(tmp_path):
    tuning = opened(tmp_path, max_daily_tokens=100)
    queue = JobQueue(Database(tmp_path))
    create(tuning, "acme")
    queue.record([Progress(queue.claim().id, 1, 100, {"train_loss": 1.0})])
    with pytest.raises(QuotaError, match="100 tokens of today"):
        create(tuning, "acme")
    create(tuning, "globex")


def test_events_and_checkpoints_come_in_pages(tmp_path):
    tuning, queue = opened(tmp_path), JobQueue(Database(tmp_path))
    id = create(tuning, "acme").id
    queue.claim()
    queue.record([Progress(id, step, step, {"train_loss": 2.0}) for step in (1, 2, 3)])
    for step in (1, 2):
        queue.add_checkpoint(id, step, f"x@{step}", {"train_loss": 2.0})
    newest = tuning.jobs.events("acme", id, 2)
    older = tuning.jobs.events("acme", id, 10, newest[-1].number)
    since = tuning.jobs.events_since("acme", id, 0, 100)
    assert [*newest, *older] == since[::-1] and len(since) == 7
    assert next(event.data for event in since if event.type == "metrics") == {"step": 1, "train_loss": 2.0}
    assert [one.step for one in tuning.jobs.checkpoints("acme", id, 10)] == [2, 1]
