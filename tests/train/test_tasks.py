"""What holds of every row of the table of tasks: trained alone as in a fleet, stored, evaluated and served alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from task_rows import ROWS, WITH_HEAD, save_base, task_rows, write_rows
from tiny_fleet import apart

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import load
from polyvera.data.tables import read
from polyvera.engine.embedding.embedder import Embedder
from polyvera.errors import RecipeError
from polyvera.evaluate.evaluate import evaluate
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.answer import Meaning, meaning_of
from polyvera.model.config import AUTO_TASK
from polyvera.model.load import load_base
from polyvera.model.task import LABEL, MULTI_LABEL, PREFERENCE, SEQ2SEQ, SIMILARITY, TASKS
from polyvera.server.classification import classified_text, worded
from polyvera.store.peft.base_model import base_for
from polyvera.store.peft.reader import import_peft
from polyvera.store.peft.writer import export_peft
from polyvera.store.registry import Registry
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

RUN: dict[str, Any] = {"rank": 4, "batch_size": 3, "max_steps": 8, "targets": "all-linear", "lr": 0.02}


def trained(task: str, folder: Path, num_rows: int = 12, **choices: Any) -> Adapter:
    data = write_rows(folder / "rows.jsonl", task_rows(task, num_rows))
    recipe = Recipe(
        **{"model": str(save_base(task, folder / "base")), "data": str(data), "task": task, **RUN, **choices}
    )
    adapter = train(recipe, progress=False).adapter
    assert adapter is not None
    return adapter


def test_every_task_has_rows_here() -> None:
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_a_fleet_gives_what_each_tenant_gives_alone(task: str, accumulate: int, tmp_path: Path) -> None:
    base = save_base(task, tmp_path / "base")
    files = [write_rows(tmp_path / f"rows/t{k}.jsonl", task_rows(task, 9 + k, 4 * k)) for k in range(3)]
    choices = {**RUN, "model": str(base), "task": task, "validation": 0.25, "accumulate": accumulate}
    # where a loss is nearly 0, or attention has one token to look at, AdamW makes steps of rounding
    choices |= {"lr": 1e-4} if task in (SIMILARITY, SEQ2SEQ) else {}
    whole = train_fleet(Recipe(**choices, data=str(tmp_path / "rows"), fleet=True, slots=2, batch_tokens=40))
    assert [outcome.problem for outcome in whole.outcomes] == [""] * 3
    for outcome in sorted(whole.outcomes, key=lambda one: one.name):
        alone = train(Recipe(**choices, data=str(files[int(outcome.name[1])])), progress=False)
        assert alone.adapter is not None and outcome.adapter is not None
        assert apart(outcome, alone) < 1e-4
        assert outcome.adapter.scores["eval_loss"] == pytest.approx(alone.scores["eval_loss"], rel=1e-4)
        assert meaning_of(outcome.adapter) == meaning_of(alone.adapter)


@pytest.mark.parametrize("task", TASKS)
def test_a_stored_adapter_has_its_meaning_and_scores_as_it_was_trained(task: str, tmp_path: Path) -> None:
    adapter = trained(task, tmp_path, test=str(write_rows(tmp_path / "test.jsonl", task_rows(task, 6, 20))))
    registry = Registry(tmp_path / "store")
    again = registry.get(registry.put("one", adapter))
    assert meaning_of(again) == meaning_of(adapter) and meaning_of(again).task == task
    table = read(tmp_path / "test.jsonl", task=task)
    base = load_base(str(tmp_path / "base"), task=task, labels=again.labels)
    [slot] = load(base.model, again)
    found = evaluate(base.model, base.tokenizer, table, slot, meanings={slot: meaning_of(again)}).scores
    assert {name: adapter.scores[name] for name in found} == pytest.approx(
        found, rel=1e-5, abs=1e-6
    )  # a margin is a small difference
    assert set(TASKS[task].metrics) <= set(found)


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_that_left_by_peft_comes_back_with_its_meaning(task: str, tmp_path: Path) -> None:
    adapter = trained(task, tmp_path, **({"threshold": 0.3} if TASKS[task].has_threshold else {}))
    whole = load_base(str(tmp_path / "base"), task=task, labels=adapter.labels).model
    folder = export_peft(adapter, tmp_path / "peft", model=whole)
    again = import_peft(folder, base_for(folder, str(tmp_path / "base")))
    assert (again.task, again.labels, again.threshold) == (adapter.task, adapter.labels, adapter.threshold)
    assert torch.equal(again.flat, adapter.flat) and again.layout == adapter.layout


@pytest.mark.parametrize("task", TASKS)
def test_tenants_are_scored_together_as_alone(task: str, tmp_path: Path) -> None:
    adapters = {f"t{k}": trained(task, tmp_path, run_seed=k) for k in range(2)}
    rows = {name: task_rows(task, 8, 8 * k) for k, name in enumerate(adapters)}
    tables = {name: read(write_rows(tmp_path / f"{name}.jsonl", own), task=task) for name, own in rows.items()}
    base = load_base(str(tmp_path / "base"), task=task, labels=adapters["t0"].labels)
    together = list(fleet_scores(base, adapters, tables, batch_size=3))
    for one in together:
        alone = next(fleet_scores(base, {one.name: adapters[one.name]}, {one.name: tables[one.name]}))
        assert one.scores == pytest.approx(alone.scores, rel=1e-4) and one.main in one.scores


@pytest.mark.parametrize("task", WITH_HEAD)
def test_what_is_served_is_what_was_evaluated(task: str, tmp_path: Path) -> None:
    adapter = trained(task, tmp_path)
    registry = Registry(tmp_path / "store")
    ref = registry.put("one", adapter)
    table = read(tmp_path / "rows.jsonl", task=task)
    base = load_base(str(tmp_path / "base"), task=task, labels=adapter.labels)
    [slot] = load(base.model, adapter)
    expected = evaluate(base.model, base.tokenizer, table, slot, meanings={slot: meaning_of(adapter)}).answers
    served = load_base(str(tmp_path / "base"), task=AUTO_TASK)
    meaning = meaning_of(adapter)
    texts = [classified_text(served.tokenizer, str(e.prompt), e.pair, meaning) for e in table.examples]
    with Embedder(served.model, served.tokenizer, registry) as engine:
        found = engine.classify([text.tokens for text in texts], ref).result(60)
    assert found.meaning == meaning
    parts = worded(found, texts)
    keys = {"label": "label", "labels": "labels", "number": "score", "tags": "words"}
    said = [part[keys[meaning.row.answer]] for part in parts]
    if meaning.row.answer == "tags":
        assert [tuple(word["label"] for word in words) for words in said] == list(expected)
    elif meaning.row.answer == "number":
        torch.testing.assert_close(torch.tensor(said), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    else:
        assert [tuple(one) for one in said] == [tuple(one) for one in expected]


def test_a_threshold_is_kept_and_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    adapter = trained(MULTI_LABEL, tmp_path / "one", threshold=0.3)
    assert meaning_of(adapter) == Meaning(MULTI_LABEL, ("x", "y", "z"), 0.3)
    with pytest.raises(RecipeError, match=r"threshold=0.3 has no effect: the rows are for label"):
        trained(LABEL, tmp_path / "other", threshold=0.3)


def test_preferences_need_a_base_that_stays(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", task_rows(PREFERENCE, 4))
    recipe = Recipe(model=str(save_base(PREFERENCE, tmp_path / "base")), data=str(data), full=True, max_steps=1)
    with pytest.raises(RecipeError, match="full=True leaves no base to compare with"):
        train(recipe, progress=False)
