"""Jobs of many tenants end with what each alone becomes, whatever happens to the others and to the process."""

import json

import pytest
import torch
from live_runs import live
from tiny_models import counting_rows

from polyvera.errors import StoreUnavailableError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import JobChoices
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.store.registry import Registry
from polyvera.train.live.job_worker import JobWorker
from polyvera.train.recipe import Recipe

RECIPE = Recipe(model="tiny", data="memory", rank=4, targets="all-linear", batch_size=4)


class Service:
    """A folder with jobs and a store, and workers over it, one after another."""

    def __init__(self, root, **choices):
        self.policy = TrainingPolicy(folder=root / "training", **choices)
        self.tuning, self.registry = FineTuning.open(self.policy), Registry(root / "store")

    def worker(self, trainer, **choices):
        return JobWorker(trainer, Database(self.policy.folder), self.registry, RECIPE, self.policy, **choices)

    def upload(self, tenant, rows):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return self.tuning.files.add(tenant, "rows.jsonl", "fine-tune", data).id

    def create(self, tenant, first=0, validation=None, rows=None, **choices):
        file = self.upload(tenant, rows or counting_rows(16)[first : first + 8])
        held_out = None if validation is None else self.upload(tenant, validation)
        return self.tuning.jobs.create(tenant, "tiny", file, held_out, JobChoices(**{"seed": 1, **choices}))

    def job(self, job):
        return self.tuning.jobs.get(job.tenant, job.id)

    def statuses(self, *jobs):
        return [self.job(job).status for job in jobs]

    def weights(self, job):
        return self.registry.get(self.job(job).fine_tuned_model).flat

    def tokens(self):
        return {row["tenant"]: row["tokens"] for row in Database(self.policy.folder).rows("SELECT * FROM usage")}


def finish(worker):
    while worker.work():
        pass


def trained(root, *makers):
    """Jobs that a worker trains without any disturbance."""
    service = Service(root)
    jobs = [service.create(tenant, **choices) for tenant, choices in makers]
    with live() as trainer:
        finish(service.worker(trainer))
    return service, jobs


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The adapter of a job that is alone."""
    service, [job] = trained(tmp_path_factory.mktemp("alone"), ("acme", {}))
    return service.weights(job)


def test_a_job_ends_as_an_adapter_of_its_tenant(tmp_path):
    service, [job] = trained(tmp_path, ("acme", {"validation": counting_rows(4), "suffix": "count", "num_epochs": 2}))
    found = service.job(job)
    assert found.status == "succeeded" and found.fine_tuned_model == job.adapter_name
    assert (found.step, found.num_steps) == (4, 4) and found.trained_tokens == service.tokens()["acme"] > 0
    checkpoints = service.tuning.jobs.checkpoints("acme", job.id, 10)
    assert [(one.step, one.model) for one in checkpoints] == [
        (4, f"{job.adapter_name}@2"),
        (2, f"{job.adapter_name}@1"),
    ]
    assert checkpoints[0].metrics["full_valid_loss"] < checkpoints[1].metrics["full_valid_loss"]
    adapter = service.registry.get(found.fine_tuned_model)
    assert adapter.scores["eval_loss"] == checkpoints[0].metrics["full_valid_loss"]
    messages = [event.message for event in service.tuning.jobs.events("acme", job.id, 100)]
    assert messages[0] == "The job has successfully completed" and "step 4" in messages[2].lower()
    assert not list((tmp_path / "training" / "runs").iterdir())


def test_jobs_together_end_as_each_alone(tmp_path, truth):
    others = [("globex", {"first": first, "num_epochs": 1 + first}) for first in range(5)]
    service, jobs = trained(tmp_path, ("acme", {}), *others)
    assert service.statuses(*jobs) == ["succeeded"] * 6 and apart(service.weights(jobs[0]), truth) < 1e-4


def test_choices_are_followed(tmp_path):
    choices = {"num_epochs": 3, "batch_size": 2, "lr_multiplier": 1e-6}
    service, [job, slow] = trained(tmp_path, ("acme", {"num_epochs": 3, "batch_size": 2}), ("acme", choices))
    assert service.job(slow).step == service.job(job).step == 12
    rates = [service.weights(one) for one in (job, slow)]
    assert rates[0].norm() > 2 * rates[1].norm()


def test_bad_jobs_end_alone(tmp_path, truth):
    long = [{"prompt": "w1", "completion": "w2 " * 100}]
    service, jobs = trained(
        tmp_path,
        ("acme", {}),
        ("globex", {"rows": long}),
        ("globex", {"lr_multiplier": 1e30, "num_epochs": 5}),
        ("globex", {"lr_multiplier": 1e-300}),
    )
    assert service.statuses(*jobs) == ["succeeded", "failed", "failed", "failed"]
    assert apart(service.weights(jobs[0]), truth) < 1e-4
    errors = [service.job(job).error for job in jobs[1:3]]
    assert [error.code for error in errors] == ["invalid_training_file", "training_diverged"]
    assert "rows.jsonl" in errors[0].message and str(tmp_path) not in errors[0].message


def test_a_file_that_is_gone_fails_its_job_without_a_path(tmp_path):
    service = Service(tmp_path)
    job = service.create("acme")
    service.tuning.files.path(job.training_file).unlink()
    with live() as trainer:
        finish(service.worker(trainer))
    assert service.statuses(job) == ["failed"] and str(tmp_path) not in service.job(job).error.message


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The adapters of two jobs that nothing disturbs."""
    service, jobs = trained(tmp_path_factory.mktemp("pair"), ("acme", {}), ("globex", {"first": 4}))
    return [service.weights(job) for job in jobs]


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 6, 7])
def test_a_killed_worker_changes_no_result_and_charges_once(tmp_path, pair, kill_at):
    service = Service(tmp_path)
    jobs = [service.create("acme"), service.create("globex", first=4)]
    with live() as trainer:
        worker = service.worker(trainer, save_s=0.0)
        for _ in range(kill_at):
            worker.work()
    with live() as trainer:
        finish(service.worker(trainer))
    assert service.statuses(*jobs) == ["succeeded"] * 2
    assert all(apart(service.weights(job), truth) < 1e-4 for job, truth in zip(jobs, pair, strict=True))
    assert service.tokens() == {job.tenant: service.job(job).trained_tokens for job in jobs}
    steps = [e.data["step"] for e in service.tuning.jobs.events("acme", jobs[0].id, 100) if e.type == "metrics"]
    assert steps == sorted(set(steps), reverse=True) and len(service.registry.list(jobs[0].adapter_name)) == 3


def test_a_job_is_cancelled_paused_and_resumed(tmp_path, truth):
    service = Service(tmp_path)
    jobs = [service.create(tenant) for tenant in ("acme", "globex", "hooli")]
    with live() as trainer:
        worker = service.worker(trainer)
        for _ in range(2):
            worker.work()
        service.tuning.jobs.move("acme", jobs[0].id, "pause")
        service.tuning.jobs.move("globex", jobs[1].id, "cancel")
        finish(worker)
        assert service.statuses(*jobs) == ["paused", "cancelled", "succeeded"]
        assert [path.stem for path in (tmp_path / "training" / "runs").iterdir()] == [jobs[0].id]
        assert trainer.names == []
    service.tuning.jobs.move("acme", jobs[0].id, "resume")
    with live() as trainer:
        finish(service.worker(trainer))
    assert service.statuses(jobs[0]) == ["succeeded"] and apart(service.weights(jobs[0]), truth) < 1e-5


def test_a_job_that_is_resumed_at_once_goes_on(tmp_path, truth):
    service = Service(tmp_path)
    job = service.create("acme")
    with live() as trainer:
        worker = service.worker(trainer)
        for _ in range(3):
            worker.work()
            service.tuning.jobs.move("acme", job.id, "pause")
            service.tuning.jobs.move("acme", job.id, "resume")
        finish(worker)
    assert service.statuses(job) == ["succeeded"] and apart(service.weights(job), truth) < 1e-5


def test_a_store_that_is_away_is_waited_for(tmp_path, monkeypatch, truth):
    monkeypatch.setattr("polyvera.train.live.job_worker.RETRY_S", 0.0)
    service = Service(tmp_path)
    job = service.create("acme")
    put, away = service.registry.put, [StoreUnavailableError("away")] * 3

    def sometimes(*args, **kwargs):
        if away:
            raise away.pop()
        return put(*args, **kwargs)

    monkeypatch.setattr(service.registry, "put", sometimes)
    with live() as trainer:
        finish(service.worker(trainer))
    assert service.statuses(job) == ["succeeded"] and not away and torch.equal(service.weights(job), truth)


def test_tokens_beyond_the_days_end_a_job_before_it_trains(tmp_path):
    service = Service(tmp_path, max_daily_tokens=5)
    job = service.create("acme")
    with live() as trainer:
        finish(service.worker(trainer))
    found = service.job(job)
    assert (found.status, found.error.code, found.step) == ("failed", "insufficient_quota", 0) and not service.tokens()


def test_columns_that_are_not_read_are_told_by_an_event(tmp_path):
    service = Service(tmp_path)
    job = service.create("acme", rows=[{**row, "id": 7} for row in counting_rows(8)])
    with live() as trainer:
        finish(service.worker(trainer))
    told = [(event.level, event.message) for event in service.tuning.jobs.events("acme", job.id, 100)]
    assert ("warn", "rows.jsonl: columns not read: id (8 rows)") in told
