"""Adapters come into a model in memory or by their names in a store, and a name of the store is a name for route()."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import polyvera
from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import banks_of, eject, extract, inject
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import NotFoundError, SlotError
from polyvera.store.load import load
from polyvera.store.registry import Registry


@pytest.fixture
def adapters(small_llama: nn.Module, scramble) -> list[Adapter]:
    """Three of one model."""
    found = []
    for seed in range(3):
        model = copy.deepcopy(small_llama)
        bank = inject(model, AdapterSpec(rank=3))
        scramble(bank, seed=seed)
        found.append(extract(bank, bank.first, model))
    return found


@pytest.fixture
def registry(tmp_path: Path, adapters: list[Adapter]) -> Registry:
    """cafe/tickets in two versions, the first of them 'live'."""
    found = Registry(tmp_path / "shelf")
    for adapter in adapters[:2]:
        found.put("cafe/tickets", adapter)
    found.alias("cafe/tickets", "live", 1)
    return found


def logits(model: nn.Module, ids: torch.Tensor, which: int | str) -> torch.Tensor:
    with torch.no_grad(), route(which):
        return model(ids).logits


@pytest.mark.parametrize(
    ("which", "number"), [("cafe/tickets", 1), ("cafe/tickets@1", 0), ("cafe/tickets@live", 0), ("ref", 1)]
)
def test_a_reference_is_the_adapter_that_the_store_has(
    small_llama: nn.Module, ids: torch.Tensor, adapters: list[Adapter], registry: Registry, which: str, number: int
) -> None:
    ref = registry.resolve("cafe/tickets@2")
    expected = copy.deepcopy(small_llama)
    load(expected, adapters[number])
    [slot] = load(small_llama, ref if which == "ref" else which, store=registry)
    name = "cafe/tickets@2" if which == "ref" else which
    assert torch.equal(logits(small_llama, ids, slot), logits(expected, ids, 1))
    assert torch.equal(logits(small_llama, ids, name), logits(expected, ids, 1))


def test_both_kinds_come_together_and_names_may_be_given(
    small_llama: nn.Module, ids: torch.Tensor, adapters: list[Adapter], registry: Registry
) -> None:
    slots = load(small_llama, ["cafe/tickets@1", adapters[2], "cafe/tickets@1"], store=registry)
    assert len(set(slots)) == 3
    assert torch.equal(logits(small_llama, ids, "cafe/tickets@1"), logits(small_llama, ids, slots[2]))
    eject(small_llama)
    load(small_llama, ["cafe/tickets", adapters[2]], names=["a", "b"], store=registry)
    with pytest.raises(SlotError, match="the names are: a, b"):
        logits(small_llama, ids, "cafe/tickets")


def test_the_store_is_the_environments_where_none_is_given(
    small_llama: nn.Module, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYVERA_STORE", registry.url)
    assert polyvera.load(small_llama, "cafe/tickets@live") == [1]


def test_what_the_store_lacks_leaves_the_model_as_it_was(
    small_llama: nn.Module, adapters: list[Adapter], registry: Registry
) -> None:
    for wrong in ("cafe/ticket", "cafe/tickets@9", "cafe/tickets@dead"):
        with pytest.raises(NotFoundError):
            load(small_llama, [adapters[0], wrong], store=registry)
    assert not banks_of(small_llama)
