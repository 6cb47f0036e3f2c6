"""Calls give what the same calls give alone, whatever happens to the trainer and to other runs."""

from threading import Event

import pytest
import torch
from live_runs import apart, live, rows_of, run_all, state_of
from run_service import ADAM, RunService, work

from polyvera.adapter.method import METHODS
from polyvera.jobs.training_run import CREATE, FORWARD, LOAD, LOAD_RUN, OPTIMIZER_STEP, RunChoices
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.live import run_worker
from polyvera.train.live.operation import OptimizerStep, Pass

LORA = next(name for name, row in METHODS.items() if not row.shares_basis)
SETTINGS = AdamSettings(weight_decay=0.0)
NUM_STEPS = 5


def expected(seed):
    with live() as trainer:
        trainer.open("r1")
        for number in range(NUM_STEPS):
            trainer.submit("r1", Pass(rows_of(100 * seed + number)))
            trainer.submit("r1", OptimizerStep(0.02, SETTINGS, 1.0))
        run_all(trainer)
        return state_of(trainer, "r1")


def ask(at, run, seed, first=0, last=NUM_STEPS):
    return [id for i in range(first, last) for id in (at.passed(run, rows_of(100 * seed + i)), at.step(run))]


def test_runs_become_what_they_would_alone(tmp_path):
    at = RunService(tmp_path)
    with live() as trainer:
        worker = at.worker(trainer)
        runs = [at.run() for _ in range(4)]  # one more than there are slots
        ids = [ask(at, run, seed) for seed, run in enumerate(runs)]
        work(trainer, worker)
        assert not worker.is_busy
        for seed, run in enumerate(runs):
            assert apart(state_of(trainer, run), expected(seed)) < 1e-5
            answers = [at.answer(id) for id in ids[seed]]
            assert all(one.answer and one.error is None for one in answers)
            assert answers[-1].answer["metrics"]["step"] == NUM_STEPS
        worker.close()


def test_a_trainer_that_is_killed_makes_again_what_was_not_saved(tmp_path):
    at = RunService(tmp_path)
    with live() as trainer:
        run, worker = at.run(), at.worker(trainer, save_s=0.0)
        ask(at, run, 1, 0, 2)
        work(trainer, worker)
        assert at.tuning.runs.get("acme", run).saved_seq == 4
    with live() as trainer:  # and it is killed, too, with calls that were answered and not saved
        worker = at.worker(trainer, save_s=1e9)
        ids = ask(at, run, 1, 2, 4)
        work(trainer, worker)
        before = [at.answer(id) for id in ids]
    with live() as trainer:
        worker = at.worker(trainer)
        ask(at, run, 1, 4)
        work(trainer, worker)
        assert torch.equal(state_of(trainer, run).weight, expected(1).weight)
        assert [at.answer(id) for id in ids] == before
        worker.close()
    assert at.tuning.runs.get("acme", run).saved_seq == 2 * NUM_STEPS
    rows = at.tuning.database.rows("SELECT tokens FROM usage")
    assert sum(row["tokens"] for row in rows) == sum(len(d) for i in range(NUM_STEPS) for d in rows_of(100 + i))


def test_calls_that_come_out_of_order_are_made_in_order(tmp_path, monkeypatch):
    at = RunService(tmp_path)
    with live() as trainer:
        run, worker = at.run(), at.worker(trainer)
        second = at.call(run, OPTIMIZER_STEP, ADAM, seq=2)
        work(trainer, worker, 3)
        assert at.answer(second).done_s is None
        at.passed(run, rows_of(1))  # is the third
        first = at.call(run, OPTIMIZER_STEP, ADAM, seq=1)
        work(trainer, worker, 5)
        steps = [at.answer(id).answer["metrics"] for id in (first, second)]
        assert [one["step"] for one in steps] == [1, 2]
        last = at.call(run, OPTIMIZER_STEP, ADAM, seq=5)
        monkeypatch.setattr(run_worker, "GAP_S", 0.0)  # the fourth never comes
        work(trainer, worker, 5)
        assert at.answer(last).answer["metrics"]["step"] == 3
        late = at.call(run, OPTIMIZER_STEP, ADAM, seq=4)
        work(trainer, worker, 3)
        assert "too late" in at.answer(late).error
        worker.close()


def test_a_call_that_fails_harms_no_other(tmp_path):
    at = RunService(tmp_path)
    with live() as trainer:
        worker = at.worker(trainer)
        run, other, unknown = at.run(), at.run(), at.run(choices=RunChoices(10**6, method=LORA))
        bad = [
            at.passed(run, rows_of(1), loss_fn="nope"),
            at.passed(run, rows_of(1), loss_fn="ppo"),
            at.call(run, LOAD, {"path": "tinker://x/weights/y", "optimizer": True}),
            at.step(unknown),
        ]
        ids = ask(at, run, 1) + ask(at, other, 2)
        work(trainer, worker)
        assert all(at.answer(id).error and at.answer(id).is_users for id in bad)
        assert "must be one of" in at.answer(bad[0]).error and "leave it out" in at.answer(bad[1]).error
        assert all(at.answer(id).error is None for id in ids) and at.tuning.runs.get("acme", unknown).ended_s
        for seed, one in ((1, run), (2, other)):
            assert apart(state_of(trainer, one), expected(seed)) < 1e-5
        worker.close()


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_run_goes_on_from_what_another_saved(tmp_path, optimizer):
    at = RunService(tmp_path)
    with live() as trainer:
        worker = at.worker(trainer)
        run = at.run()
        ask(at, run, 1, 0, 3)
        saved = at.save(run, "three")
        ask(at, run, 1, 3)
        work(trainer, worker)
        path = at.answer(saved).answer["path"]
        asked, session = {"path": path, "optimizer": optimizer}, run.partition(":")[0]
        again = at.tuning.operations.create_run("acme", session, 1, LOAD_RUN, RunChoices(4), {}, asked)
        forward = at.passed(again.run, rows_of(103), FORWARD)
        ask(at, again.run, 1, 3)
        at.call(run, LOAD, asked)
        ask(at, run, 1, 3)
        work(trainer, worker)
        assert at.answer(again.id).answer == {"model_id": again.run, "path": path}
        assert at.answer(forward).answer["loss"] == pytest.approx(at.answer(f"{again.run}:2").answer["loss"])
        for one in (run, again.run):
            assert (apart(state_of(trainer, one), expected(1)) < 1e-5) == optimizer
        worker.close()


def test_a_run_that_has_ended_leaves(tmp_path):
    at = RunService(tmp_path)
    with live() as trainer:
        worker, run = at.worker(trainer, save_s=0.0), at.run()
        ask(at, run, 1, 0, 1)
        work(trainer, worker, 5)
        assert trainer.names == [run] and list((at.policy.folder / "open_runs").iterdir())
        at.tuning.runs.end("acme", run)
        work(trainer, worker, 2)
        assert not trainer.names and not list((at.policy.folder / "open_runs").iterdir())
        worker.close()


def test_it_waits_until_something_comes(tmp_path):
    at = RunService(tmp_path)
    with live() as trainer:
        worker = at.worker(trainer)
        worker.take()
        worker.wait(Event(), 0.02)
        at.run()
        worker.wait(Event(), 60.0)
        assert at.tuning.operations.get("acme", f"{at.tuning.runs.list('acme', 1, 0)[0][0].id}:0")[0].kind == CREATE
        worker.close()
