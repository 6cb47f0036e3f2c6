"""Runs that share batches and slots train as each would alone; one that fails harms no other."""

import threading

import numpy as np
import pytest
import torch
from live_runs import STEP, alone, apart, live, rows_of, run_all, state_of, train_steps

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS, OWN_WIDTH
from polyvera.errors import ConflictError, DataError, LayoutError, NonFiniteError, NotFoundError
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.live.datum import Datum
from polyvera.train.live.operation import OptimizerStep, Pass, SetState, TakeState
from polyvera.train.live.run_state import RunState

NAMES = ["r0", "r1", "r2"]


@pytest.mark.parametrize("method", METHODS)
def test_runs_together_have_the_numbers_of_each_alone(method):
    with live(method) as trainer:
        for name in NAMES:
            trainer.open(name)
        losses = train_steps(trainer, NAMES, 50)
        found = {name: state_of(trainer, name) for name in NAMES}
    assert all(own[-1] < own[0] for own in losses)
    # Roundings, spread by 50 steps of Adam; more at a rate that is 60 times a row's own.
    most = 2e-2 if METHODS[method].rank == OWN_WIDTH else 5e-4
    for name, state in found.items():
        assert state.step == 50 and apart(state, alone(method, name, 50)) < most


@pytest.mark.parametrize("method", ["vera", "lora", "dora"])
def test_runs_in_batches_of_their_own_have_the_very_numbers_of_each_alone(method):
    with live(method, 2, is_deterministic=True) as trainer:
        for name in NAMES:
            trainer.open(name)
        train_steps(trainer, NAMES, 10)
        found = {name: state_of(trainer, name) for name in NAMES}
    for name, state in found.items():
        assert torch.equal(state.weight, alone(method, name, 10).weight)


@pytest.mark.parametrize("method", ["vera", "lora"])
def test_more_runs_than_slots_are_parked_and_return_as_they_were(method, tmp_path):
    names = [f"r{i}" for i in range(7)]
    with live(method, 2, folder=tmp_path, parked_bytes=1) as trainer:
        for name in names:
            trainer.open(name)
        train_steps(trainer, names, 20)
        assert trainer.num_parked == 5 and len(list(tmp_path.iterdir())) == 4
        found = {name: state_of(trainer, name) for name in names}
        for name in names:
            trainer.close(name)
        assert trainer.names == [] and not list(tmp_path.iterdir())
    for name, state in found.items():
        assert apart(state, alone(method, name, 20)) < 1e-4


def test_a_run_parked_between_its_pass_and_its_step_keeps_its_gradient():
    with live(num_slots=1) as trainer:
        trainer.open("r0")
        trainer.open("r1")
        trainer.submit("r0", Pass(rows_of(0)))
        run_all(trainer)
        train_steps(trainer, ["r1"], 2)
        trainer.submit("r0", STEP)
        run_all(trainer)
        found = state_of(trainer, "r0")
    assert torch.equal(found.weight, alone("vera", "r0", 1).weight) and found.grad is None


def test_gradients_add_up_until_the_step():
    rows = rows_of(5, 4)
    with live() as trainer:
        trainer.open("r0")
        trainer.open("r1")
        trainer.submit("r0", Pass(rows[:2]))
        trainer.submit("r0", Pass(rows, backward=False))
        trainer.submit("r0", Pass(rows[2:]))
        trainer.submit("r1", Pass(rows))
        for name in ("r0", "r1"):
            trainer.submit(name, STEP)
        run_all(trainer)
        assert apart(state_of(trainer, "r0"), state_of(trainer, "r1")) < 1e-5


def test_every_step_has_its_own_settings():
    settings = [AdamSettings(), AdamSettings(0.5, 0.9, 1e-6, 0.1)]
    with live() as trainer:
        for name in NAMES[:2]:
            trainer.open(name)
        for step in range(6):
            for number, name in enumerate(NAMES[:2]):
                trainer.submit(name, Pass(rows_of(step)))
                trainer.submit(name, OptimizerStep(0.01 * (1 + number + step), settings[number], 0.5 + number))
        run_all(trainer)
        found = [state_of(trainer, name) for name in NAMES[:2]]
    for number, state in enumerate(found):
        with live(num_slots=1) as trainer:
            parameter = torch.nn.Parameter(RunState.of_slot(trainer.moments, 0).weight)
            own = settings[number]
            keys = {"betas": (own.beta1, own.beta2), "eps": own.eps, "weight_decay": own.weight_decay}
            adamw = torch.optim.AdamW([parameter], **keys)
            for step in range(6):
                trainer.passes.run([(trainer.bank.first, Pass(rows_of(step)))])
                parameter.grad = trainer.moments.grads[0].clone()
                trainer.moments.grads.zero_()
                torch.nn.utils.clip_grad_norm_([parameter], 0.5 + number)
                adamw.param_groups[0]["lr"] = 0.01 * (1 + number + step)
                adamw.step()
                trainer.bank.flat[0].copy_(parameter.detach())
                trainer.bank.version += 1
        assert (state.weight - parameter).norm() < 1e-4 * parameter.norm()


@pytest.mark.parametrize("method", ["vera", "lora"])
def test_a_run_whose_numbers_are_not_finite_harms_no_other(method):
    with live(method) as trainer:
        for name in NAMES:
            trainer.open(name)
        train_steps(trainer, NAMES, 3)
        broken = state_of(trainer, "r1")
        nan = RunState(torch.full_like(broken.weight, torch.nan))
        trainer.submit("r1", SetState(nan))
        failed = trainer.submit("r1", Pass(rows_of(1)))
        train_steps(trainer, ["r0", "r2"], 3)
        with pytest.raises(NonFiniteError, match="loss is nan: this pass has no effect"):
            failed.result(0)
        assert state_of(trainer, "r1").grad is None
        trainer.submit("r1", SetState(broken))
        again = trainer.submit("r1", Pass(rows_of(1)))
        run_all(trainer)
        assert np.isfinite(again.result(0).loss)
        found = state_of(trainer, "r0")
    with live(method) as trainer:
        trainer.open("r0")
        train_steps(trainer, ["r0"], 3)
        train_steps(trainer, ["r0"], 3)
        assert apart(found, state_of(trainer, "r0")) < 1e-5


def test_a_failed_pass_leaves_the_gradient_before_it():
    with live() as trainer:
        trainer.open("r0")
        trainer.submit("r0", Pass(rows_of(0)))
        run_all(trainer)
        before = state_of(trainer, "r0")
        huge = tuple(Datum.of(r.tokens, r.targets, {"weights": np.full(len(r), 3e38)}) for r in rows_of(1))
        failed = trainer.submit("r0", Pass(huge))
        run_all(trainer)
        assert isinstance(failed.exception(0), NonFiniteError)
        assert torch.equal(state_of(trainer, "r0").grad, before.grad)


def test_rows_that_raise_fail_alone():
    with live() as trainer:
        trainer.open("r0")
        trainer.open("r1")
        bad = trainer.submit("r0", Pass(rows_of(0)))
        object.__setattr__(trainer._runs["r0"].waiting[0][0].rows[0], "tokens", np.array([10**6]))
        good = trainer.submit("r1", Pass(rows_of(100)))
        trainer.submit("r1", STEP)
        run_all(trainer)
        assert isinstance(bad.exception(0), IndexError) and good.result(0).loss > 0
        found, untouched = state_of(trainer, "r1"), state_of(trainer, "r0")
    assert untouched.grad is None and apart(found, alone("vera", "r1", 1)) < 1e-5


def test_a_parked_run_that_cannot_be_read_fails_alone(tmp_path):
    with live(num_slots=1, folder=tmp_path, parked_bytes=1) as trainer:
        for name in NAMES:
            trainer.open(name)
        [path] = [p for p in tmp_path.iterdir() if trainer._slots.parked._on_disk.get("r1") == p]
        path.write_bytes(b"half")
        bad, state = trainer.submit("r1", Pass(rows_of(1))), trainer.submit("r1", TakeState())
        good = trainer.submit("r2", Pass(rows_of(2)))
        run_all(trainer)
        assert "cannot be resumed" in str(bad.exception(0)) and "cannot be resumed" in str(state.exception(0))
        assert good.result(0).loss > 0


def test_a_state_is_saved_and_set_with_or_without_its_moments():
    with live() as trainer:
        trainer.open("r0")
        train_steps(trainer, ["r0"], 4)
        saved = state_of(trainer, "r0")
        train_steps(trainer, ["r0"], 3)
        after = state_of(trainer, "r0")
        trainer.submit("r0", SetState(saved))
        train_steps(trainer, ["r0"], 3)
        assert torch.equal(state_of(trainer, "r0").weight, after.weight)
        trainer.submit("r0", SetState(saved, with_moments=False))
        bare = state_of(trainer, "r0")
        assert torch.equal(bare.weight, saved.weight) and bare.exp_avg is None and bare.step == 0
        trainer.open("r9", saved)
        train_steps(trainer, ["r9"], 1)
        assert state_of(trainer, "r9").step == 5


def test_a_runs_numbers_are_an_adapter():
    with live("lora", model="tiny") as trainer:
        trainer.open("r0")
        train_steps(trainer, ["r0"], 2)
        state = state_of(trainer, "r0")
        adapter = trainer.adapter(state, {"train_loss": 1.0})
        assert isinstance(adapter, Adapter) and torch.equal(adapter.flat, state.weight)
        assert adapter.model == "tiny" and adapter.base and adapter.scores == {"train_loss": 1.0} and adapter.created


def test_what_cannot_be_is_refused_before_anything_is_computed():
    with live() as trainer:
        trainer.open("r0")
        small = RunState(torch.ones(3))
        with pytest.raises(ConflictError, match="open already"):
            trainer.open("r0")
        for refused in (lambda: trainer.open("r1", small), lambda: trainer.submit("r0", SetState(small))):
            with pytest.raises(LayoutError, match="3 numbers"):
                refused()
        for unknown in (lambda: trainer.submit("r7", TakeState()), lambda: trainer.close("r7")):
            with pytest.raises(NotFoundError, match="no run 'r7'"):
                unknown()
        with pytest.raises(DataError, match="is not a token"):
            trainer.submit("r0", Pass((Datum.of([1], [999], {"weights": [1]}),)))
        with pytest.raises(DataError, match="the model reads 64"):
            trainer.submit("r0", Pass((Datum.of([1] * 65, [1] * 65, {"weights": [1] * 65}),)))
        assert trainer.names == ["r0"] and not trainer.round()


def test_closing_a_run_cancels_what_it_waits_for():
    with live() as trainer:
        trainer.open("r0")
        future, other = trainer.submit("r0", Pass(rows_of(0))), trainer.submit("r0", STEP)
        trainer.close("r0")
        assert future.cancelled() and other.cancelled() and not trainer.round()
        trainer.open("r0")
        assert state_of(trainer, "r0").step == 0


def test_a_cancelled_wish_is_left_out():
    with live() as trainer:
        trainer.open("r0")
        for asked in (Pass(rows_of(0)), STEP, TakeState()):
            trainer.submit("r0", asked).cancel()
        last = trainer.submit("r0", TakeState())
        run_all(trainer)
        assert last.result(0).step == 0


def test_a_wish_wakes_who_waits():
    with live() as trainer:
        trainer.open("r0")
        assert not trainer.wait(0.01)
        threading.Timer(0.05, trainer.submit, ("r0", TakeState())).start()
        assert trainer.wait(30) and trainer.round()
