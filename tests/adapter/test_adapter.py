from dataclasses import replace

import pytest
import torch
from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import given_basis
from polyvera.adapter.inject import banks_of, eject, extract, inject, load
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError

SHAPES = {"layers.0.q": (8, 6), "layers.1.q": (8, 6)}
HEAD = {"score.weight": (3, 8)}
every = pytest.mark.parametrize("name", METHODS)


def made(spec: AdapterSpec, of: AdapterSpec) -> Adapter:
    """An adapter of the layout that one spec gives, said to be another's."""
    layout = layout_of(of, SHAPES, HEAD if of.head else None)
    return Adapter(spec, layout, torch.zeros(layout.num_params))


@every
def test_a_spec_of_another_layout_makes_no_adapter(name: str) -> None:
    spec = AdapterSpec(name, rank=4, seed=1)
    others = [replace(spec, rank=3), replace(spec, magnitude=True), replace(spec, head=("score",))]
    others += [replace(spec, alpha=7.0)] if spec.row.takes_alpha else []
    others += [replace(spec, in_max=20)] if spec.row.shares_basis else []
    others += [replace(spec, hash_size=3)]
    others += [replace(spec, seed=2)] if spec.row.shares_basis or spec.row.draws_by_seed else []
    others += [AdapterSpec(other, rank=4, seed=1) for other in METHODS]
    for other in others:
        if layout_of(other, SHAPES, HEAD if other.head else None).key() != layout_of(spec, SHAPES).key():
            with pytest.raises(LayoutError, match="do not belong together"):
                made(spec, other)
    assert made(spec, spec).num_params > 0 and made(replace(spec, dropout=0.5), spec).spec.dropout == 0.5


def test_a_basis_of_another_layout_makes_no_adapter() -> None:
    spec = AdapterSpec(next(n for n, row in METHODS.items() if row.shares_basis), rank=4)
    layout = layout_of(spec, SHAPES)
    given = given_basis(torch.ones(4, 8), torch.ones(6, 4))
    flat = torch.zeros(layout.num_params)
    with pytest.raises(LayoutError, match="the basis given is"):
        Adapter(spec, layout, flat, given.sha256, given)
    assert Adapter(spec, replace(layout, basis=given.key), flat, given.sha256, given).basis() is given


@every
def test_what_leaves_a_bank_has_the_spec_that_it_was_injected_with(small_llama: nn.Module, scramble, name: str) -> None:
    specs = [AdapterSpec(name, rank=4, seed=1), AdapterSpec(name, rank=4, seed=1, dropout=0.5)]
    adapters = []
    for spec in specs:
        bank = inject(small_llama, spec)
        scramble(bank)
        adapters.append(extract(bank, bank.first, small_llama))
        eject(small_llama)
    assert [adapter.spec for adapter in adapters] == specs
    slots = load(small_llama, adapters)
    (bank,) = banks_of(small_llama)
    assert [extract(bank, slot).spec for slot in slots] == specs
    bank.put(slots[0], adapters[1])
    assert extract(bank, slots[0]).spec == specs[1]


def test_numbers_that_came_without_a_spec_are_not_extracted(small_llama: nn.Module, scramble) -> None:
    bank = inject(small_llama, AdapterSpec(rank=4))
    adapter = extract(bank, 1)
    eject(small_llama)
    load(small_llama, adapter)
    (bank,) = banks_of(small_llama)
    bank.clear(1)
    bank._write(0, adapter.flat)
    with pytest.raises(LayoutError, match="no adapter was put into it"):
        extract(bank, 1)
