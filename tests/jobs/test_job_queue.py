"""The queue is fair between tenants, counts each step once, and lets a tenant's own word win."""

import pytest
from some_jobs import create, opened

from polyvera.errors import QuotaError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import JobError
from polyvera.jobs.job_queue import MAX_ATTEMPTS, JobQueue, Progress


def made(job, step, tokens):
    return Progress(job.id, step, tokens, {"train_loss": 1.5})


@pytest.fixture
def tuning(tmp_path):
    return opened(tmp_path)


@pytest.fixture
def queue(tmp_path, tuning):
    return JobQueue(Database(tmp_path))


def usage(tmp_path):
    return {row["tenant"]: row["tokens"] for row in Database(tmp_path).rows("SELECT * FROM usage")}


def test_tenants_take_turns(tuning, queue):
    for tenant in ["acme"] * 4 + ["globex"] * 2 + ["hooli"]:
        create(tuning, tenant)
    order = []
    while (job := queue.claim()) is not None:
        order.append(job.tenant)
    assert order == ["acme", "globex", "hooli", "acme", "globex", "acme", "acme"]


def test_who_has_trained_least_today_is_next(tuning, queue):
    busy = create(tuning, "acme")
    queue.claim()
    queue.record([made(busy, 1, 500)])
    queue.succeed(busy.id, "ft/acme/x")
    create(tuning, "acme")
    create(tuning, "globex")
    assert queue.claim().tenant == "globex"


def test_a_step_counts_and_costs_once(tmp_path, tuning, queue):
    job = create(tuning, "acme")
    queue.claim()
    queue.record([made(job, 1, 100), made(job, 2, 200)])
    queue.record([made(job, 1, 100), made(job, 2, 200), made(job, 3, 300)])
    found = tuning.jobs.get("acme", job.id)
    assert (found.step, found.trained_tokens, usage(tmp_path)) == (3, 300, {"acme": 300})
    events = tuning.jobs.events("acme", job.id, 100)
    assert [event.data["step"] for event in events if event.type == "metrics"] == [3, 2, 1]


def test_a_tenants_word_wins(tmp_path, tuning, queue):
    jobs = [create(tuning, "acme") for _ in range(3)]
    for _ in jobs:
        queue.claim()
    tuning.jobs.move("acme", jobs[0].id, "cancel")
    tuning.jobs.move("acme", jobs[1].id, "pause")
    ids = [job.id for job in jobs]
    assert queue.statuses([*ids, "gone"]) == dict(zip([*ids, "gone"], ["cancelled", "paused", None, "cancelled"]))
    assert queue.statuses([]) == {}
    queue.record([made(job, 1, 10) for job in jobs])
    for job in jobs:
        queue.succeed(job.id, "ft/acme/x")
    statuses = [tuning.jobs.get("acme", id).status for id in ids]
    assert statuses == ["cancelled", "paused", "succeeded"] and usage(tmp_path) == {"acme": 10}
    assert tuning.jobs.get("acme", ids[2]).fine_tuned_model == "ft/acme/x"


def test_what_a_dead_trainer_ran_is_in_line_again(tuning, queue):
    job = create(tuning, "acme")
    for _ in range(MAX_ATTEMPTS):
        assert queue.claim().id == job.id
        queue.recover()
    assert queue.claim() is None
    failed = tuning.jobs.get("acme", job.id)
    assert failed.status == "failed" and failed.error.code == "server_error" and "5 times" in failed.error.message


def test_a_job_that_gets_further_may_be_restarted_for_ever(tuning, queue):
    job = create(tuning, "acme")
    for step in range(1, 2 * MAX_ATTEMPTS):
        assert queue.claim().id == job.id
        queue.record([made(job, step, step)])
        queue.recover()


def test_a_failed_job_says_why(tuning, queue):
    job = create(tuning, "acme")
    queue.claim()
    queue.fail(job.id, JobError("invalid_training_file", "row 3 is too long", "training_file"))
    found = tuning.jobs.get("acme", job.id)
    assert (found.status, found.error.param) == ("failed", "training_file") and found.finished_s
    assert tuning.jobs.events("acme", job.id, 1)[0].level == "error"


def test_tokens_that_are_promised_are_not_left(tuning, queue):
    first, second, other = create(tuning, "acme"), create(tuning, "acme"), create(tuning, "globex")
    for _ in range(3):
        queue.claim()
    queue.plan(first, 10, 70, 100)
    queue.record([made(first, 1, 30)])
    with pytest.raises(QuotaError, match="40 tokens, and you have 30 left"):
        queue.plan(second, 10, 40, 100)
    queue.plan(second, 10, 30, 100)
    queue.plan(other, 10, 100, 100)
    queue.plan(second, 10, 10**9, None)
    assert tuning.jobs.get("acme", first.id).num_steps == 10


def test_a_checkpoint_is_kept_once(tuning, queue):
    job = create(tuning, "acme")
    queue.claim()
    for _ in range(2):
        queue.add_checkpoint(job.id, 4, "ft/acme/x@1", {"train_loss": 1.0})
    [one] = tuning.jobs.checkpoints("acme", job.id, 10)
    assert (one.step, one.model, one.metrics) == (4, "ft/acme/x@1", {"train_loss": 1.0})
    assert sum("Checkpoint" in event.message for event in tuning.jobs.events("acme", job.id, 10)) == 1
