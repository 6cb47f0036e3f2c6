"""What a recipe asks of a fleet is done from Python too, or refused: nothing is left out in silence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fleet import SETTINGS, fleet, solo
from tiny_models import make_model, make_tokenizer

from polyvera import train_fleet
from polyvera.errors import NotFoundError, RecipeError
from polyvera.evaluate.fleet_scores import TenantScores
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.recipe import Recipe


def test_a_name_publishes_in_the_recipes_store(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "shelf"
    result = fleet(folder, name="shop", store=str(store), stored="bfloat16", max_steps=1)
    assert [outcome.reference for outcome in result.outcomes] == [f"shop/t{k}@1" for k in range(5)]
    assert {ref.name for ref in Registry(store).list()} == {f"shop/t{k}" for k in range(5)}
    whole = fleet(folder, registry=Registry(tmp_path / "whole"), max_steps=1)
    sizes = [sum(ref.num_bytes for ref in Registry(tmp_path / place).list()) for place in ("shelf", "whole")]
    assert sizes[0] < sizes[1] and all(outcome.adapter is None for outcome in whole.outcomes)


def test_what_is_scored_is_what_is_stored(folder: Path, tmp_path: Path) -> None:
    exact, low = (
        fleet(folder, store=str(tmp_path / stored), stored=stored, max_steps=2, validation=0.25)
        for stored in ("float32", "int3")
    )
    for one, other in zip(exact.outcomes, low.outcomes, strict=True):
        scores = Registry(tmp_path / "int3").get(other.reference).scores
        assert one.rounding_loss is None and other.rounding_loss not in (None, 0.0)
        assert scores["rounding_loss"] == other.rounding_loss and scores["eval_loss"] == other.eval_loss
        assert one.train_loss == other.train_loss and one.eval_loss != other.eval_loss
    alone = solo(folder / "t0.jsonl", name="t0", store=str(tmp_path / "a"), stored="int3", max_steps=2, validation=0.25)
    assert alone.scores["rounding_loss"] == pytest.approx(low.outcomes[0].rounding_loss, abs=1e-5)
    assert alone.scores["eval_loss"] == pytest.approx(low.outcomes[0].eval_loss, abs=1e-5)


def test_a_store_alone_publishes_under_the_tenants_own_names(folder: Path, tmp_path: Path) -> None:
    fleet(folder, store=str(tmp_path / "shelf"), max_steps=1)
    assert {ref.name for ref in Registry(tmp_path / "shelf").list()} == {f"t{k}" for k in range(5)}


def test_a_name_without_a_store_goes_to_the_environments(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYVERA_STORE", str(tmp_path / "shelf"))
    fleet(folder, name="shop", max_steps=1)
    solo(folder / "t0.jsonl", name="alone", max_steps=1)
    assert len(Registry(tmp_path / "shelf").list("shop")) == 5
    assert Registry(tmp_path / "shelf").get("alone")


def test_without_either_the_outcomes_hold_the_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = fleet(folder, max_steps=1)
    assert all(outcome.adapter is not None and not outcome.reference for outcome in result.outcomes)
    assert not (folder / "adapters").exists()


def test_init_from_is_where_all_begin(folder: Path, tmp_path: Path) -> None:
    registry, first = Registry(tmp_path / "shelf"), solo(folder / "t0.jsonl").adapter
    assert first is not None
    registry.put("first", first)
    result = fleet(folder, init_from="first", store=registry.url, max_steps=1, lr=1e-9)
    for outcome in result.outcomes:
        assert torch.allclose(registry.get(outcome.reference).flat, first.flat, atol=1e-6)
    with pytest.raises(NotFoundError, match="second"):
        fleet(folder, init_from="second", store=registry.url)


def test_a_resumed_run_begins_from_what_it_kept_though_the_store_has_it_no_more(folder: Path, tmp_path: Path) -> None:
    registry, first = Registry(tmp_path / "shelf"), solo(folder / "t0.jsonl").adapter
    assert first is not None
    registry.put("first", first)
    choices = {"init_from": "first", "store": registry.url, "output": str(tmp_path / "run"), "max_steps": 1}
    fleet(folder, **choices)
    registry.remove("first@1")
    assert len(fleet(folder, resume=True, **choices).of(FINISHED)) == 5


@pytest.mark.parametrize("publishes", [False, True])
def test_test_rows_are_scored(folder: Path, tmp_path: Path, publishes: bool) -> None:
    told: list[TenantScores] = []
    more: dict[str, Any] = {"store": str(tmp_path / "shelf")} if publishes else {}
    result = fleet(folder, test=str(folder), max_steps=1, on_score=told.append, **more)
    assert sorted(score.name for score in result.scores) == [f"t{k}" for k in range(5)]
    assert list(result.scores) == told and all("exact_match" in score.scores for score in told)
    assert fleet(folder, max_steps=1).scores == ()


@pytest.mark.parametrize(
    ("choices", "given", "message"),
    [
        ({"fleet": None, "slots": None, "batch_tokens": None}, {}, "fleet=True is missing"),
        ({"stored": "int8"}, {}, "stored='int8' has no effect where nothing is published"),
        ({"dtype": "bfloat16"}, {}, "dtype='bfloat16', and the base that was given is in float32"),
        ({"head_lr": 0.1}, {}, "head_lr=0.1 has no effect"),
        ({"init_from": "mean"}, {"start": True}, "start and init_from='mean' both say where to begin"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    folder: Path, choices: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    if given:
        given = {"start": solo(folder / "t0.jsonl", max_steps=1).adapter}
    with pytest.raises(RecipeError, match=message):
        fleet(folder, **{**choices, **given})


def test_nobody_is_not_everybody(folder: Path) -> None:
    recipe = Recipe(**SETTINGS, data=str(folder), fleet=True)
    assert train_fleet(recipe, everyone=[], base=Base(make_model(), make_tokenizer())).outcomes == ()
