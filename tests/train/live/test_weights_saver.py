"""What is saved is whole, of its tenant, and goes when it is not wanted any more."""

from dataclasses import replace

import pytest
import torch
from live_runs import live, rows_of, run_all, state_of
from run_service import KEPT, RunService

from polyvera.errors import ConflictError, DataError, DivergedError, NotFoundError, QuotaError
from polyvera.jobs.operation_queue import OperationQueue
from polyvera.train.live.operation import OptimizerStep, Pass
from polyvera.train.live.weights_saver import NUM_UNNAMED, WeightsSaver

ASKED = {"name": "one", "overwrite": False, **KEPT}
SAMPLED = {"name": "two", "is_named": True, "sampling_session_seq_id": 3, **KEPT}


@pytest.fixture
def saved(tmp_path):
    at = RunService(tmp_path)
    run = OperationQueue(at.tuning.database).run(at.run())
    with live() as trainer:
        trainer.open("r1")
        trainer.submit("r1", Pass(rows_of(1)))
        trainer.submit("r1", OptimizerStep(0.1))
        trainer.submit("r1", Pass(rows_of(2)))
        run_all(trainer)
        yield at, run, WeightsSaver(at.tuning.database, at.registry, 10**6), state_of(trainer, "r1"), trainer


def test_a_state_comes_back_without_its_gradient(saved):
    at, run, saver, state, _ = saved
    made = saver.save(run, 1, ASKED, state)
    found = saver.load(run, made.path)
    assert torch.equal(found.weight, state.weight) and torch.equal(found.exp_avg, state.exp_avg)
    assert found.grad is None and state.grad is not None and found.step == state.step
    with pytest.raises(ConflictError):
        saver.save(run, 2, ASKED, state)
    assert len(list((at.policy.folder / "weights").iterdir())) == 1
    saver.save(run, 2, {**ASKED, "overwrite": True}, state)
    assert len(list((at.policy.folder / "weights").iterdir())) == 1
    with pytest.raises(QuotaError):
        WeightsSaver(at.tuning.database, at.registry, 10).save(run, 3, {**ASKED, "name": "big"}, state)


def test_an_adapter_is_published_for_its_tenant(saved):
    at, run, saver, state, trainer = saved
    made, sampler = saver.publish(run, 1, SAMPLED, state, trainer)
    assert made.adapter.startswith("ft/acme/run-") and torch.equal(at.registry.get(made.adapter).flat, state.weight)
    assert at.tuning.samplers.get("acme", sampler).adapter == made.adapter
    again, _ = saver.publish(run, 1, SAMPLED, state, trainer)  # the same call, made again after a restart
    assert [str(ref) for ref in at.registry.list("ft/acme")] == [again.adapter] != [made.adapter]
    with pytest.raises(ConflictError):
        saver.publish(run, 2, SAMPLED, state, trainer)
    assert len(at.registry.list("ft/acme")) == 1
    with pytest.raises(DataError, match="is to sample with"):
        saver.load(run, made.path)
    with pytest.raises(NotFoundError):
        saver.load(run, made.path.replace("two", "three"))


def test_numbers_that_nothing_can_serve_are_not_published(saved):
    at, run, saver, state, trainer = saved
    with pytest.raises(DivergedError, match="at a lower learning rate"):
        saver.publish(run, 1, SAMPLED, replace(state, weight=state.weight + 1e5), trainer)
    assert not at.registry.list("ft/acme")


def test_what_nobody_named_goes_when_others_follow(saved):
    at, run, saver, state, trainer = saved
    saved_to = saver.save(run, 1, ASKED, state)
    for seq in range(2, NUM_UNNAMED + 4):
        saver.publish(run, seq, {**SAMPLED, "name": f"u{seq}", "is_named": False}, state, trainer)
    saver.tidy()
    assert len(at.registry.list("ft/acme")) == NUM_UNNAMED
    at.tuning.weights.expire("acme", saved_to.path, 5)
    saver.tidy()
    assert not list((at.policy.folder / "weights").iterdir())
