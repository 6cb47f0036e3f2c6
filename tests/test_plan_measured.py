"""The law over the table: what is planned is what a real model with the adapter in it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from polyvera.adapter.adapter import adapter_from
from polyvera.adapter.bank import Bank
from polyvera.adapter.basis import draw_basis, given_basis
from polyvera.adapter.inject import extract, head_tensors, inject
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import GIVEN, AdapterSpec
from polyvera.adapter.targets import find_head, find_sites
from polyvera.plan import ADAM_BYTES, STORED, Cost, cost
from polyvera.store.file.codec import encode
from polyvera.store.file.stored_dtype import SCALE, STORED_DTYPES


@dataclass(frozen=True)
class Case:
    """A model with an adapter in it, the bytes of the bare model, and the plan made before it was injected."""

    model: nn.Module
    bank: Bank
    spec: AdapterSpec
    base_nbytes: int
    costs: dict[str, Cost]

    def train_once(self) -> list[nn.Parameter]:
        """Runs one forward and backward; returns the trained parameters."""
        self.model.train()(input_ids=torch.tensor([[1, 2, 3]])).logits.pow(2).sum().backward()
        return [p for p in self.model.parameters() if p.requires_grad]


@pytest.fixture(params=["default", "all-linear"])
def targets(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "magnitude"])
def magnitude(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=METHODS)
def case(request: pytest.FixtureRequest, model: nn.Module, targets: str, magnitude: bool) -> Case:
    spec = AdapterSpec(request.param, rank=5, targets=targets, magnitude=magnitude, head=find_head(model))
    head = {key: tuple(t.shape) for key, t in head_tensors(model, spec.head).items()}
    sites, base = find_sites(model, spec), list(model.parameters())
    num_base_params, base_nbytes = sum(p.numel() for p in base), sum(p.nbytes for p in base)
    costs = {s: cost(spec, sites, num_base_params, head=head, base_dtype="float32", stored=s) for s in STORED}
    return Case(model, inject(model, spec), spec, base_nbytes, costs)


def test_planned_numbers_and_memory_are_the_measured_ones(case):
    mine = case.costs["float32"]
    adapter = extract(case.bank, 1, case.model)
    trained = sum(p.numel() for p in case.model.parameters() if p.requires_grad)
    assert mine.num_params == trained == adapter.num_params
    assert mine.num_head_params == sum(p.numel() for h in case.bank.heads.values() for p in h.parameters())
    assert mine.slot_bytes == case.bank.flat.nbytes
    assert mine.base_bytes == case.base_nbytes


def test_planned_stored_bytes_are_those_of_the_file(case):
    adapter = extract(case.bank, 1, case.model)
    head = {key for key, _ in adapter.layout.head}
    for stored in STORED:
        sizes = tensor_bytes(encode(adapter, stored))
        assert case.costs[stored].stored_bytes == sum(sizes.values())
        assert case.costs[stored].head_bytes == sum(n for key, n in sizes.items() if key.removesuffix(SCALE) in head)


def tensor_bytes(file: bytes) -> dict[str, int]:
    """The bytes of each tensor of a safetensors file, by name, as its own header has them."""
    header_bytes = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + header_bytes])
    sizes = {key: end - at for key, entry in header.items() for at, end in (entry.get("data_offsets", (0, 0)),)}
    assert sum(sizes.values()) == len(file) - 8 - header_bytes
    return sizes


def test_the_plan_knows_every_stored_dtype():
    assert set(STORED) == set(STORED_DTYPES)


def test_a_carried_basis_is_priced_as_it_is_stored(small_llama):
    spec = AdapterSpec(rank=3)
    sites, num_base_params = find_sites(small_llama, spec), sum(p.numel() for p in small_llama.parameters())
    drawn = draw_basis(layout_of(spec, sites).basis)
    tensors = {key: torch.ones(e.shape) for key, e in layout_of(spec, sites).entries.items()}
    given = AdapterSpec(rank=3, init=GIVEN)
    carrying = adapter_from(given, sites, tensors, given_basis(drawn.A, drawn.B))
    for stored in STORED:
        sizes = tensor_bytes(encode(carrying, stored))
        assert cost(given, sites, num_base_params, stored=stored).stored_bytes == sum(sizes.values())


def test_planned_frozen_bytes_are_the_measured_ones(case):
    case.train_once()
    mine, bank = case.costs["float32"], case.bank
    pair = () if bank.basis is None else bank.basis.to(bank.flat.device, bank.dtype)
    assert mine.basis_bytes == sum(t.nbytes for t in pair)
    frozen = {t.data_ptr(): t.nbytes for layer in bank.layers.values() for t in layer.buffers()}
    assert mine.frozen_bytes == sum(frozen.values())
    kept = [layer._parts for layer in bank.layers.values() if layer._parts is not None]
    assert mine.constant_bytes == sum(t.nbytes for p in kept for t in (p.square, p.WA, p.AA))


def test_adam_holds_sixteen_bytes_a_trained_parameter(case):
    trained = case.train_once()
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    held = sum(t.nbytes for t in (*trained, *(p.grad for p in trained), *moments))
    assert held == ADAM_BYTES * case.costs["float32"].num_params
