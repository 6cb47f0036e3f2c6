"""warm_start: the adapter of the store that a run begins from, or the mean of those that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject
from polyvera.adapter.method import METHODS
from polyvera.errors import NotFoundError, RecipeError
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.warm_start import check_begin, mean, warm_start


def recipe(**choices: Any) -> Recipe:
    return Recipe(**{"model": "m", "data": "d", "rank": 2, **choices})


def adapter(given: Recipe, seed: int) -> Adapter:
    model = make_model()
    bank = inject(model, given.spec())
    one = extract(bank, bank.first, model)
    return replace(one, flat=torch.randn(one.flat.shape, generator=torch.Generator().manual_seed(seed)))


def test_nothing_is_read_where_nothing_is_named(tmp_path: Path) -> None:
    assert warm_start(recipe(), Registry(tmp_path / "none")) is None


def test_an_adapter_by_its_name(tmp_path: Path) -> None:
    registry, one = Registry(tmp_path), adapter(recipe(), 1)
    registry.put("a", one)
    found = warm_start(recipe(init_from="a"), registry)
    assert found is not None and torch.equal(found.flat, one.flat)
    with pytest.raises(NotFoundError, match="no adapter 'b'"):
        warm_start(recipe(init_from="b"), registry)


def test_the_mean_is_of_the_latest_versions_that_fit(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    old, first, second = (adapter(recipe(), seed) for seed in range(3))
    for name, one in (("a", old), ("a", first), ("b", second), ("c", adapter(recipe(rank=3), 4))):
        registry.put(name, one)
    found = warm_start(recipe(init_from="mean"), registry)
    assert found is not None and torch.allclose(found.flat, (first.flat + second.flat) / 2)
    with pytest.raises(RecipeError, match="none of the 3 adapters"):
        warm_start(recipe(init_from="mean", rank=5), registry)


def test_no_mean_of_what_differs_or_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the mean of no adapters"):
        mean([])
    with pytest.raises(RecipeError, match="differ in layout or base"):
        mean([adapter(recipe(), 1), adapter(recipe(rank=3), 1)])
    with pytest.raises(NotFoundError, match="there is no store"):
        warm_start(recipe(init_from="mean"), Registry(tmp_path / "none"))


def test_an_adapter_of_another_kind_or_base_is_no_start(tmp_path: Path) -> None:
    registry, one = Registry(tmp_path), adapter(recipe(), 1)
    registry.put("a", one)
    with pytest.raises(RecipeError, match="init_from='a' is vera of rank 2, .* vera of rank 3: give .* rank=2"):
        warm_start(recipe(init_from="a", rank=3), registry)
    registry.put("b", adapter(recipe(rank=None), 1))
    assert warm_start(recipe(init_from="b", rank=METHODS["vera"].rank), registry) is not None, "the default, given"
    with pytest.raises(RecipeError, match="is vera of rank 2, and this run trains lora of rank 2"):
        warm_start(recipe(init_from="a", method="lora"), registry)
    check_begin(None, make_model(), None)
    check_begin(one, make_model(), None)
    other = make_model()
    torch.nn.init.normal_(other.model.norm.weight)
    with pytest.raises(RecipeError, match="was trained on the base model .*, and this is"):
        check_begin(one, other, None)


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        ({}, {"targets": "all-linear"}, r"has 4 layers \(q_proj, v_proj; .*\), and this run 14 layers \(down_proj, "),
        ({"alpha": 2.0}, {"alpha": 64.0}, r"has a scale of 1, and this run a scale of 32: give what it was"),
        ({"method": "vera"}, {"method": "vera", "seed": 7}, r"has seed 0, .*, and this run seed 7, "),
        ({"head": ("lm_head",)}, {}, r"has the head lm_head\.weight \(47, 32\), and this run no head"),
        ({}, {"method": "dora"}, r"has method lora, and this run method dora"),
    ],
)
def test_what_differs_of_a_start_of_another_form_is_said(theirs: Any, ours: Any, told: str) -> None:
    start, model = adapter(recipe(**{"method": "lora", **theirs}), 1), make_model()
    bank = inject(model, recipe(**{"method": "lora", **theirs}).spec())
    check_begin(start, model, bank)
    eject(model)
    bank = inject(model, recipe(**{"method": "lora", **ours}).spec())
    with pytest.raises(RecipeError, match=told):
        check_begin(start, model, bank)
