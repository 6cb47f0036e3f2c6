"""schedule: the steps of a run and their learning rates, beside those of transformers."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from polyvera.train.recipe import Recipe
from polyvera.train.schedule import DECAYS, lr_factor, num_steps, seed_everything

THEIRS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def recipe(**choices: Any) -> Recipe:
    return Recipe(model="m", data="d", **choices)


@pytest.mark.parametrize("schedule", DECAYS)
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.06, 50), (0.5, 9), (0.99, 4), (0.06, 1)])
def test_the_learning_rates_are_those_of_transformers_without_the_0(schedule: str, warmup: float, total: int) -> None:
    given = recipe(schedule=schedule, warmup=warmup, max_steps=total)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs: Any = get_scheduler(THEIRS[schedule], optimizer, 1 - (-total * warmup // 1), total + 1)
    ours = lr_factor(given, total)
    assert [ours(step) for step in range(total)] == pytest.approx(
        [theirs.lr_lambdas[0](step + 1) for step in range(total)], abs=1e-9
    )
    assert all(ours(step) > 0 for step in range(total))


@pytest.mark.parametrize(
    ("choices", "num_rows", "processes", "expected"),
    [
        ({"batch_size": 8}, 24, 1, (3, 9)),
        ({"batch_size": 8, "epochs": 0.5}, 24, 1, (3, 2)),
        ({"batch_size": 8, "accumulate": 2}, 25, 1, (2, 6)),
        ({"batch_size": 4, "max_steps": 7}, 25, 2, (4, 7)),
    ],
)
def test_steps_of_an_epoch_and_in_all(
    choices: dict[str, Any], num_rows: int, processes: int, expected: tuple[int, int]
) -> None:
    assert num_steps(recipe(**choices), num_rows, processes) == expected


def test_a_seed_is_of_every_generator() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(5)
    first = drawn()
    assert drawn() != first
    seed_everything(5)
    assert drawn() == first


def test_importing_train_does_not_import_the_trainer_of_transformers() -> None:
    code = "import sys, polyvera.train.trainer, polyvera.train.fleet.fleet; print([m for m in {} if m in sys.modules])"
    heavy = ["transformers.trainer", "peft", "accelerate", "datasets", "matplotlib", "transformers.modeling_utils"]
    run = subprocess.run([sys.executable, "-c", code.format(heavy)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
