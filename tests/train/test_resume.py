import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_classifier, make_model, make_tokenizer
from transformers import TrainerCallback

from polyvera.adapter.method import METHODS
from polyvera.model.load import Base
from polyvera.train import checkpoint
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import TrainResult, train

BUDGET = {"rank": 2, "warmup": 3, "final": 5, "interval": 2}
STEPS, SAVED, KILLED = 15, 4, 10  # six steps an epoch: the kill comes in the middle of the second


def recipe(data: str, output: Path, **choices: Any) -> Recipe:
    settings = {
        "model": "tiny",
        "data": data,
        "rank": 4,
        "batch_size": 4,
        "max_steps": STEPS,
        "lr": 0.05,
        "dropout": 0.2,
    }
    watched = {"validation": 0.2, "eval_every": 3, "save_every": SAVED, "output": str(output), "targets": "all-linear"}
    return Recipe(**{**settings, **watched, **choices})


def run(recipe: Recipe, callbacks: Any = (), *, resume: bool = False, classes: bool = False) -> TrainResult:
    base = Base(make_classifier() if classes else make_model(), make_tokenizer())
    return train(recipe, base=base, resume=resume, progress=False, callbacks=callbacks)


def same(one: TrainResult, other: TrainResult) -> bool:
    assert one.adapter is not None and other.adapter is not None
    assert one.history == other.history
    assert one.scores == other.scores
    assert one.ranks == other.ranks
    return torch.equal(one.adapter.flat, other.adapter.flat)


class Kill(TrainerCallback):
    """kill -9, from inside, after a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)


class PowerLossError(Exception):
    """Stands in for a kill within the process of the test."""


class Cut(TrainerCallback):
    """Ends a run after a step by an error."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == KILLED:
            raise PowerLossError


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_as_if_it_had_not_been(counting: str, tmp_path: Path) -> None:
    whole = run(recipe(counting, tmp_path / "whole", budget=BUDGET))
    choices = recipe(counting, tmp_path / "killed", budget=BUDGET)
    code = "import sys, test_resume as t; t.run(t.Recipe.model_validate_json(sys.argv[1]), [t.Kill()])"
    killed = subprocess.run(
        [sys.executable, "-c", code, choices.model_dump_json(exclude_unset=True)],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums depend on it
        stderr=subprocess.PIPE,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert checkpoint.last(tmp_path / "killed") == tmp_path / "killed" / "checkpoint-8"
    assert same(whole, run(choices, resume=True))


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batches_together(counting: str, tmp_path: Path) -> None:
    choices = {"dropout": 0.0, "validation": counting, "max_steps": 6}
    whole = run(recipe(counting, tmp_path / "one", **choices))
    code = tmp_path / "both.py"
    code.write_text("import sys, test_resume as t; t.run(t.Recipe.model_validate_json(sys.argv[1]))")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    halves = recipe(counting, tmp_path / "two", **{**choices, "batch_size": 2}).model_dump_json(exclude_unset=True)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(code), halves],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    stored = checkpoint.read(tmp_path / "two" / "best.safetensors")
    expected = checkpoint.read(tmp_path / "one" / "best.safetensors")
    assert all(torch.allclose(stored[name], value, rtol=1e-4, atol=1e-6) for name, value in expected.items())
    history = json.loads((tmp_path / "two" / "history.json").read_text())
    assert [loss for _, loss in history["validation"]] == pytest.approx([loss for _, loss in whole.history.validation])


@pytest.mark.parametrize("method", METHODS)
def test_every_row_resumes_bit_for_bit(counting: str, tmp_path: Path, method: str) -> None:
    whole = run(recipe(counting, tmp_path / "whole", method=method))
    choices = recipe(counting, tmp_path / "cut", method=method, save_every=5)  # cut right after a save
    with pytest.raises(PowerLossError):
        run(choices, [Cut()])
    assert same(whole, run(choices, resume=True))


@pytest.mark.parametrize(
    "choices",
    [
        {"save_every": 6},  # at the end of an epoch
        {"group_by_length": True, "accumulate": 2, "batch_size": 2},
        {"early_stopping": 1, "lr": 3.0, "max_steps": 60},
        {"schedule": "cosine", "validation": None, "eval_every": None},
    ],
)
def test_every_kind_of_run_resumes_bit_for_bit(counting: str, tmp_path: Path, choices: dict[str, Any]) -> None:
    choices = {**recipe(counting, tmp_path / "cut").model_dump(exclude_unset=True), **choices}
    parts = Recipe(**{name: value for name, value in choices.items() if value is not None})
    whole = run(parts.replaced(output=str(tmp_path / "whole")))
    try:
        run(parts, [Cut()])
    except PowerLossError:
        assert checkpoint.last(tmp_path / "cut") is not None
    assert same(whole, run(parts, resume=True))


def test_a_head_resumes_too(classes: str, tmp_path: Path) -> None:
    targets = ["query", "value"]
    whole = run(recipe(classes, tmp_path / "whole", targets=targets), classes=True)
    choices = recipe(classes, tmp_path / "cut", targets=targets)
    with pytest.raises(PowerLossError):
        run(choices, [Cut()], classes=True)
    assert same(whole, run(choices, resume=True, classes=True))


def test_a_checkpoint_cut_short_while_it_was_written_is_passed_over(counting: str, tmp_path: Path) -> None:
    whole = run(recipe(counting, tmp_path / "whole"))
    choices = recipe(counting, tmp_path / "cut")
    with pytest.raises(PowerLossError):
        run(choices, [Cut()])
    good = tmp_path / "cut" / "checkpoint-8"
    torn = tmp_path / "cut" / "checkpoint-12"
    shutil.copytree(good, torn)
    (torn / checkpoint.FILES).unlink()  # it is written last
    for state in (None, (good / checkpoint.STATE).read_text()[:50], (good / checkpoint.STATE).read_text()):
        (torn / checkpoint.STATE).unlink(missing_ok=True)
        if state is not None:
            (torn / checkpoint.STATE).write_text(state)
        assert checkpoint.last(tmp_path / "cut") == good
    assert same(whole, run(choices, resume=True))


def test_a_run_killed_before_its_first_checkpoint_starts_anew(counting: str, tmp_path: Path) -> None:
    choices = recipe(counting, tmp_path / "cut", save_every=14)
    with pytest.raises(PowerLossError):
        run(choices, [Cut()])
    assert checkpoint.last(tmp_path / "cut") is None
    assert same(run(recipe(counting, tmp_path / "whole", save_every=14)), run(choices, resume=True))
