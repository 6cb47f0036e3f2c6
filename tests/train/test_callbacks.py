"""Beside the steps: the best numbers are kept and patience ends a run; progress is a line now and then."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_models import make_model
from transformers import TrainerControl, TrainerState, TrainingArguments

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.train.callbacks import LINES, KeepBest, Pruning, Shown
from polyvera.train.checkpoint import read, trained


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[])


def evaluated(callback, args, losses, first_step=1):
    """Whether the run is to stop after each of these validation losses."""
    stops = []
    for step, loss in enumerate(losses, first_step):
        state = TrainerState(global_step=step)
        control = callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_loss": loss})
        stops.append(control.should_training_stop)
    return stops


@pytest.fixture
def model():
    """With one adapter in it."""
    found = make_model()
    inject(found, AdapterSpec(rank=2))
    return found


def fill(model, value):
    for parameter in trained(model).values():
        parameter.data.fill_(value)


def test_the_lowest_loss_is_kept_and_patience_ends_the_run(tmp_path, args, model):
    path = tmp_path / "best.safetensors"
    keep = KeepBest(model, path, patience=2)
    fill(model, 1.0)
    assert evaluated(keep, args, [3.0, 2.0]) == [False, False]
    fill(model, 5.0)
    assert evaluated(keep, args, [2.5, 2.0], first_step=3) == [False, True]
    assert (keep.loss, keep.step) == (2.0, 2)
    assert all((tensor == 1.0).all() for tensor in read(path).values()), "an equal loss is no lower one"


def test_without_patience_no_loss_ends_a_run(tmp_path, args, model):
    keep = KeepBest(model, tmp_path / "best.safetensors", patience=None)
    assert not any(evaluated(keep, args, [1.0, *[2.0] * 50]))


def test_what_comes_before_the_begin_does_not_count(tmp_path, args, model):
    keep = KeepBest(model, tmp_path / "best.safetensors", patience=1, begin=3)
    assert evaluated(keep, args, [1.0, 2.0, 3.0]) == [False] * 3 and not keep.path.exists()
    assert evaluated(keep, args, [9.0, 10.0], first_step=4) == [False, True] and keep.step == 4


def test_its_state_comes_back(tmp_path, args, model):
    one, other = (KeepBest(model, tmp_path / "best", patience=3) for _ in range(2))
    evaluated(one, args, [3.0, 1.0, 2.0])
    other.restore(one.state())
    assert (other.loss, other.step, other.since) == (one.loss, one.step, one.since) == (1.0, 2, 1)


def test_the_allocator_steps_with_the_optimizer(args):
    steps: list[int] = []
    pruning = Pruning(SimpleNamespace(step=steps.append))
    for step in (4, 5):
        pruning.on_optimizer_step(args, TrainerState(global_step=step), TrainerControl())
    assert steps == [4, 5]


def test_a_page_gets_a_line_now_and_then_and_each_validation_loss(args):
    page, num = io.StringIO(), 10 * LINES
    shown, state = Shown(Console(file=page, width=100)), TrainerState(max_steps=num)
    shown.on_train_begin(args, state, TrainerControl())
    for state.global_step in range(1, num + 1):
        shown.on_log(args, state, TrainerControl(), logs={"loss": 0.5, "grad_norm": 9.0})
    shown.on_log(args, state, TrainerControl(), logs={"eval_loss": 0.25})
    shown.on_log(args, state, TrainerControl(), logs={"grad_norm": 9.0})
    shown.on_train_end(args, state, TrainerControl())
    lines = page.getvalue().splitlines()
    assert len(lines) == LINES + 1 and lines[0] == f"step 10/{num}: loss 0.5"
    assert lines[-1] == f"step {num}/{num}: eval loss 0.25"
