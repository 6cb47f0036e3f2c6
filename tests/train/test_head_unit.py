"""A regression learns, stores and answers numbers in the unit of its labels, whatever that is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from task_rows import save_base, task_rows, write_rows
from tiny_fleet import apart

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, load
from polyvera.data.tables import read
from polyvera.errors import RecipeError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.answer import meaning_of
from polyvera.model.load import load_base
from polyvera.model.task import REGRESSION
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import TrainResult, train

RUN: dict[str, Any] = {"task": REGRESSION, "rank": 4, "batch_size": 4, "max_steps": 10, "lr": 0.02}


def prices(folder: Path, factor: float, offset: float, num_rows: int = 16) -> str:
    rows = [row | {"label": factor * row["label"] + offset} for row in task_rows(REGRESSION, num_rows)]
    return str(write_rows(folder / f"{factor:g}.jsonl", rows))


def trained(folder: Path, data: str, **choices: Any) -> TrainResult:
    base = folder / "base"
    if not base.exists():
        save_base(REGRESSION, base)
    given = {name: value for name, value in {**RUN, **choices}.items() if value is not None}
    return train(Recipe(model=str(base), data=data, **given), progress=False)


def answers(folder: Path, adapter: Adapter, data: str) -> torch.Tensor:
    base = load_base(str(folder / "base"), task=REGRESSION, labels=adapter.labels)
    [slot] = load(base.model, adapter)
    table = read(data, task=REGRESSION)
    found = evaluate(base.model, base.tokenizer, table, slot, meanings={slot: meaning_of(adapter)}).answers
    eject(base.model)
    return torch.tensor(found)


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_what_is_learned_does_not_depend_on_the_unit(stored: str, tmp_path: Path) -> None:
    one, other = prices(tmp_path, 1.0, 0.0), prices(tmp_path, 4000.0, -90.0)
    choices = {"name": "one", "store": str(tmp_path / "store"), "stored": stored, "validation": 0.25}
    runs = [trained(tmp_path, data, test=data, **choices) for data in (one, other)]
    first, second = (answers(tmp_path, run.adapter, one) for run in runs if run.adapter is not None)
    torch.testing.assert_close(second, first * 4000 - 90, rtol=1e-3 if stored == "float32" else 0.1, atol=5.0)
    for name in ("train_loss", "eval_loss", "pearson"):
        assert runs[1].scores[name] == pytest.approx(runs[0].scores[name], rel=1e-2)
    labels = torch.tensor([4000 * row["label"] - 90 for row in task_rows(REGRESSION, 16)])
    assert runs[1].scores["mse"] == pytest.approx(float(((second - labels) ** 2).mean()), rel=1e-3)


def test_a_fleet_of_several_units_gives_what_each_tenant_gives_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    files = [prices(rows, factor, 7.0) for factor in (1.0, 500.0, 3e6)]
    base = save_base(REGRESSION, tmp_path / "base")
    recipe = Recipe(model=str(base), data=str(rows), fleet=True, slots=2, validation=0.25, **RUN)
    outcomes = {outcome.name: outcome for outcome in train_fleet(recipe).outcomes}
    for file in files:
        alone = trained(tmp_path, file, validation=0.25)
        outcome = outcomes[Path(file).stem]
        assert outcome.problem == "" and apart(outcome, alone) < 1e-4
        assert outcome.eval_loss == pytest.approx(alone.scores["eval_loss"], rel=1e-4)


def test_a_run_goes_on_from_an_adapter_that_answers_in_the_unit(tmp_path: Path) -> None:
    data = prices(tmp_path, 4000.0, -90.0)
    first = trained(tmp_path, data).adapter
    assert first is not None
    again = train(
        Recipe(model=str(tmp_path / "base"), data=data, **{**RUN, "max_steps": 1, "lr": 1e-30, "head_lr": 1e-30}),
        start=first,
        progress=False,
    ).adapter
    assert again is not None
    torch.testing.assert_close(again.flat, first.flat, rtol=1e-4, atol=1e-3)


def test_a_whole_model_answers_in_the_unit(tmp_path: Path) -> None:
    data = prices(tmp_path, 4000.0, -90.0)
    run = trained(tmp_path, data, full=True, rank=None, test=data, lr=1e-3)
    labels = torch.tensor([4000 * row["label"] - 90 for row in task_rows(REGRESSION, 16)])
    assert run.scores["mse"] < 2 * float(labels.var())
    kept = trained(tmp_path, data, full=True, rank=None, test=data, lr=1e-30, max_steps=1).scores["mse"]
    assert kept < 3 * float(labels.var())


def test_a_start_that_answers_in_quite_another_unit_is_refused(tmp_path: Path) -> None:
    near, far = prices(tmp_path, 1.0, 0.0), prices(tmp_path, 4.0, 1e6)
    start = trained(tmp_path, far).adapter
    base = load_base(str(tmp_path / "base"), task=REGRESSION, labels=("score",))
    recipe = Recipe(model=str(tmp_path / "base"), data=near, **RUN)
    with pytest.raises(RecipeError, match="answers numbers of quite another size than these labels"):
        train(recipe, base=base, start=start, progress=False)
    assert train(recipe.replaced(data=far), base=base, start=start, progress=False).adapter is not None
