"""A basis of every kind is one that adapters train on, are stored with and served from, of a kaiming pair's size."""

from math import sqrt
from pathlib import Path

import pytest
import torch

from polyvera.adapter.inject import load
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.bases.make import KINDS, about, make_basis, sized
from polyvera.errors import DataError, NotFoundError, RecipeError, SpecError
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

SETTINGS = {"model": "tiny", "rank": 4, "targets": "all-linear", "max_steps": 4, "batch_size": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_basis_is_made_trained_on_stored_and_served(kind: str, base: Base, folder: Path, tmp_path: Path) -> None:
    recipe, registry = Recipe(**SETTINGS, data=str(folder)), Registry(tmp_path / "store")
    basis = make_basis(recipe, kind, base=base)
    assert (basis.key.rank, basis.key.in_max, basis.key.out_max) == (4, 48, 48)
    if kind != "uniform":
        assert float(basis.A.square().sum(1).mean()) == pytest.approx(2.0, rel=0.2)
        assert float(basis.B.square().sum(0).mean()) == pytest.approx(2 * 48 / 4, rel=0.2)
    registry.bases.put(basis, "made", about(recipe, kind))
    own = Recipe(**SETTINGS, data=str(folder), lr=0.1, basis="made", store=registry.url, fleet=True, name="team")
    result = train_fleet(own, base=base, tell=lambda line: None)
    assert len(result.of(FINISHED)) == 5 and registry.bases.about("made")["kind"] == kind
    file = (tmp_path / "store/adapters/team/t1/1.safetensors").read_bytes()
    assert basis.sha256.encode() in file and b"basis.A" not in file
    ids = torch.arange(6)[None] + 5
    with torch.no_grad():
        bare = base.model(input_ids=ids).logits
    slots = load(base.model, [registry.get(f"team/t{k}") for k in (0, 1)])
    with torch.no_grad(), route(slots[1]):
        served = base.model(input_ids=ids).logits
    with torch.no_grad():
        merged = merge(base.model, slots[1])(input_ids=ids).logits
    assert torch.allclose(served, merged, atol=1e-4) and not torch.allclose(served, bare, atol=1e-3)


def test_a_solo_run_and_a_fleet_train_the_same_on_it(base: Base, folder: Path, tmp_path: Path) -> None:
    registry, data = Registry(tmp_path / "store"), str(folder / "t2.jsonl")
    registry.bases.put(make_basis(Recipe(**SETTINGS, data=data), "gradients", base=base), "g")
    own = {**SETTINGS, "lr": 0.1, "basis": "g", "store": registry.url}
    alone = train(Recipe(**own, data=data), base=base, progress=False).adapter
    fleet = train_fleet(Recipe(**own, data=str(folder), fleet=True, name="x"), base=base, tell=lambda line: None)
    assert alone is not None and len(fleet.of(FINISHED)) == 5
    assert torch.allclose(registry.get("x/t2").flat, alone.flat, atol=1e-4)
    again = train(Recipe(**own, data=data, init_from="mean"), base=base, progress=False)
    assert again.adapter is not None and again.adapter.spec == alone.spec


@pytest.mark.parametrize(
    ("choices", "kind", "error", "message"),
    [
        ({}, "activation", SpecError, "did you mean 'activations'"),
        ({"method": "lora"}, "activations", RecipeError, "no pair that all layers share"),
        ({"hash_size": 8}, "activations", RecipeError, "hash_size has no effect"),
        ({"rank": 40}, "gradients", DataError, "take a lower rank"),
        ({}, "fleet", DataError, "has one tenant"),
    ],
)
def test_what_no_basis_can_be_made_of(choices, kind, error, message, base: Base, folder: Path) -> None:
    given = {**SETTINGS, "targets": ("q_proj",), "max_steps": 1, **choices}
    with pytest.raises(error, match=message):
        make_basis(Recipe(**given, data=str(folder / "t0.jsonl")), kind, base=base)


def test_a_recipe_must_fit_its_basis(base: Base, folder: Path, tmp_path: Path) -> None:
    registry, data = Registry(tmp_path / "store"), str(folder / "t0.jsonl")
    registry.bases.put(make_basis(Recipe(**SETTINGS, data=data), "orthogonal", base=base), "o")
    own = {**SETTINGS, "data": data, "store": registry.url}
    with pytest.raises(RecipeError, match="has rank 4, not 8: give rank=4"):
        train(Recipe(**{**own, "rank": 8}, basis="o"), base=base, progress=False)
    with pytest.raises(NotFoundError, match="there is no basis 'p'"):
        train(Recipe(**own, basis="p"), base=base, progress=False)
    with pytest.raises(RecipeError, match="basis='o' is not used by lora"):
        Recipe(**own, basis="o", method="lora")
    with pytest.raises(RecipeError, match="init='hadamard' has no effect with basis"):
        Recipe(**own, basis="o", init="hadamard")


def test_sized() -> None:
    A, B = sized(torch.randn(3, 50), torch.randn(70, 3))
    assert float(A.norm()) == pytest.approx(sqrt(6)) and float(B.norm()) == pytest.approx(sqrt(140))
