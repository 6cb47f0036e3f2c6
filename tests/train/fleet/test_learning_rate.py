"""A run that leaves its rate open chooses one and says so; a rate that is given is that number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import counting_rows, make_model, make_tokenizer

from polyvera.adapter.method import METHODS
from polyvera.data.encoding import Encoded
from polyvera.errors import DataError
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Fleet
from polyvera.train.fleet.halving import RUNGS
from polyvera.train.fleet.learning_rate import (
    HELD_OUT_SHARE,
    MIN_HELD_OUT,
    LearningRate,
    kept_rate,
    sweep_rows,
    unswept_rate,
)
from polyvera.train.fleet.step_rows import StepRows
from polyvera.train.fleet.sweep import step_of
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import TrainResult, train

SETTINGS: dict[str, Any] = {"model": "tiny", "rank": 4, "batch_size": 2, "max_steps": 18, "targets": "all-linear"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", 48)


def written(path: Path, num_rows: int) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in counting_rows(num_rows)))
    return path


def run(path: Path, **choices: Any) -> TrainResult:
    resume = choices.pop("resume", False)
    recipe = Recipe(**{**SETTINGS, "data": str(path), **choices})
    return train(recipe, base=Base(make_model(), make_tokenizer()), progress=False, resume=resume)


def test_the_chosen_rate_gives_the_run_that_is_given_it(data: Path) -> None:
    chosen = run(data)
    given = run(data, lr=chosen.rate.lr)
    assert chosen.rate.sweep is not None
    assert given.rate == LearningRate(chosen.rate.lr)
    assert torch.equal(chosen.adapter.flat, given.adapter.flat)


def test_too_few_rows_take_the_rate_of_the_method_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path / "few.jsonl", 12)
    found = run(path).rate
    assert (found.lr, found.sweep) == (METHODS["vera"].lr, None)
    assert "12 rows in 18 steps say too little" in found.text
    train(Recipe(**SETTINGS, data=str(path)), base=Base(make_model(), make_tokenizer()))
    assert found.text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"full": True}, "full fine-tuning"),
        ({"budget": {"rank": 2}}, "rank budget"),
        ({"fleet": True, "workers": 2, "output": "x"}, "workers"),
    ],
)
def test_a_run_without_slots_says_so(choices: dict[str, Any], reason: str) -> None:
    recipe = Recipe(model="tiny", data="x", lr="auto", **choices)
    found = unswept_rate(recipe)
    assert reason in found.text
    assert found.lr == recipe.learning_rate
    assert unswept_rate(recipe.replaced(lr=0.5)).text == ""


def test_a_resumed_run_keeps_its_rate(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(data, output=str(folder), save_every=9)
    again = run(data, output=str(folder), save_every=9, resume=True)
    assert again.rate == LearningRate(first.rate.lr)
    assert torch.equal(first.adapter.flat, again.adapter.flat)


def test_a_kept_rate_is_asked_for_once(tmp_path: Path) -> None:
    assert kept_rate(tmp_path, lambda: LearningRate(0.5), resume=False).lr == 0.5
    assert kept_rate(tmp_path, lambda: LearningRate(0.7), resume=True).lr == 0.5
    assert kept_rate(tmp_path, lambda: LearningRate(0.7), resume=False).lr == 0.7
    assert kept_rate(None, lambda: LearningRate(0.9), resume=False).lr == 0.9


def encoded(num: int) -> Encoded:
    return Encoded(tuple({"input_ids": [2, i % 7], "labels": [-100, i % 7]} for i in range(num)))


def recipe_of(**choices: Any) -> Recipe:
    return Recipe(**{**SETTINGS, "data": "x", **choices})


def test_validation_rows_are_chosen_by() -> None:
    rows = sweep_rows("a", recipe_of(), encoded(48), encoded(90))
    assert (rows.name, len(rows.training), len(rows.held_out), rows.total) == ("a", 48, MIN_HELD_OUT, 18)
    assert len(sweep_rows("", recipe_of(max_steps=400), encoded(48), encoded(90)).held_out) == 400 * 2 // 48


@pytest.mark.parametrize("more", [{}, {"group_by_length": True}])
def test_the_last_rows_of_the_first_pass_are_chosen_by_and_not_trained_on(more: dict[str, Any]) -> None:
    recipe = recipe_of(**more)
    every = Encoded(tuple({"input_ids": [2, i], "labels": [-100, i]} for i in range(48)))
    found = sweep_rows("", recipe, every, None)
    assert len(found.training) == 48
    last = step_of(RUNGS[-1], recipe, 18, 1.0)
    steps = StepRows(recipe, found.training)
    seen = [row["input_ids"][1] for step in range(last) for row in steps.of(step)]
    held_out = [row["input_ids"][1] for row in found.held_out]
    assert len(held_out) == MIN_HELD_OUT
    assert not {*seen} & {*held_out}


def test_many_passes_without_validation_hold_rows_out() -> None:
    every = encoded(100)
    rows = sweep_rows("", recipe_of(max_steps=400), every, None)
    assert len(rows.held_out) == 100 * HELD_OUT_SHARE
    assert len(rows.training) + len(rows.held_out) == 100
    with pytest.raises(DataError, match="too few to hold 8 out"):
        sweep_rows("", recipe_of(max_steps=400), encoded(79), None)


def test_a_fleet_takes_one_rate_by_a_sample_of_its_tenants(tmp_path: Path) -> None:
    for k in range(8):
        written(tmp_path / f"t{k}.jsonl", 12 if k == 0 else 48)
    told: list[str] = []
    seen: list[float] = []

    def watch(fleet: Fleet) -> None:
        seen.append(fleet.recipe.learning_rate)

    recipe = Recipe(**SETTINGS, data=str(tmp_path), fleet=True, slots=16)
    base = Base(make_model(), make_tokenizer())
    result = train_fleet(recipe, base=base, watch=watch, tell=told.append)
    assert result.rate.sweep.num_tenants == 2  # as many as 16 slots hold
    assert told[-1] == result.rate.text and all("the sweep of" in line for line in told[1:-1]) and len(told) > 4
    assert {*seen} == {result.rate.lr}
    first, told = told[0], []
    given = train_fleet(recipe.replaced(lr=result.rate.lr), base=base, tell=told.append)
    assert told == [first, ""]
    for one, other in zip(result.outcomes, given.outcomes, strict=True):
        assert torch.equal(one.adapter.flat, other.adapter.flat)
