"""A place that takes no results is refused before any work, and what was trained is never lost."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import counting_rows, make_model, make_tokenizer

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import PolyveraError, RecipeError, StoreError
from polyvera.model.load import Base
from polyvera.store.file.codec import decode
from polyvera.store.registry import Registry
from polyvera.train.destination import check_folder, check_store, put_or_keep
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train


def adapter() -> Adapter:
    model = make_model()
    bank = inject(model, AdapterSpec(rank=2))
    return extract(bank, bank.first, model)


def bad_places(folder: Path) -> list[str]:
    (folder / "file").write_text("x")
    return ["/proc/nope", str(folder / "file"), str(folder / "file" / "inside")]


def test_places_that_take_nothing_are_named(tmp_path: Path) -> None:
    for place in bad_places(tmp_path):
        with pytest.raises(StoreError, match=place):
            check_store(Registry(place))
        with pytest.raises(RecipeError, match=place):
            check_folder(Path(place))


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "store")
    check_store(registry)
    assert registry.list() == []
    ref = registry.put("a", adapter())
    check_store(registry)
    assert registry.verify() == [] and [str(one) for one in registry.list()] == [str(ref)]
    check_folder(tmp_path / "run" / "deep")
    assert list((tmp_path / "run" / "deep").iterdir()) == []
    check_store(Registry("memory://nowhere"))


@pytest.mark.parametrize("fleet", [False, True])
@pytest.mark.parametrize("where", ["store", "output"])
def test_nothing_is_loaded_for_a_run_that_cannot_be_kept(tmp_path: Path, fleet: bool, where: str) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "ann.jsonl").write_text(json.dumps(counting_rows(1)[0]) + "\n")
    for place in bad_places(tmp_path):
        data = str(rows if fleet else rows / "ann.jsonl")
        recipe = Recipe(model="there is no such model", data=data, name="x", fleet=fleet, **{where: place})
        with pytest.raises(PolyveraError, match=place):
            train_fleet(recipe, registry=Registry(recipe.store)) if fleet else train(recipe)


def test_an_adapter_that_cannot_be_published_is_kept(tmp_path: Path, jsonl: object) -> None:
    store = tmp_path / "store"
    (store / "adapters").mkdir(parents=True)
    (store / "adapters" / "x").write_text("in the way")
    rows = jsonl(counting_rows(8))  # type: ignore[operator]
    choices = {"model": "tiny", "data": rows, "max_steps": 2, "rank": 2, "name": "x", "store": str(store)}
    with pytest.raises(StoreError, match=r"the trained adapter is kept in .*run/adapter\.safetensors"):
        base = Base(make_model(), make_tokenizer())
        train(Recipe(**choices, output=str(tmp_path / "run")), base=base, progress=False)
    kept = decode((tmp_path / "run" / "adapter.safetensors").read_bytes())
    assert kept.num_params > 0 and bool(torch.isfinite(kept.flat).all())


def test_without_a_folder_it_is_kept_in_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "x").write_text("in the way")
    own = adapter()
    with pytest.raises(StoreError) as failed:
        put_or_keep(Registry(tmp_path), "x", own, alias=None, dtype="float32", folder=None)
    path = Path(str(failed.value).rpartition("kept in ")[2])
    assert torch.equal(decode(path.read_bytes()).flat, own.flat)
    path.unlink()
    path.parent.rmdir()
