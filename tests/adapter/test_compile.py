"""torch.compile of a whole model with banks: one graph, for every route."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from polyvera.adapter.inject import banks_of, eject, extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec

every = pytest.mark.parametrize("name", METHODS)


def spec_of(name: str) -> AdapterSpec:
    return AdapterSpec(name, rank=4, targets="all-linear")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@every
def test_one_graph_without_a_break_serves_every_route(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    model = small_llama
    scramble(inject(model, spec_of(name), 3))
    twin = copy.deepcopy(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for slots in (2, 0, [2, 0, 3, 1], [1, 1, 1, 1], 3):
        with torch.no_grad(), route(slots):
            assert torch.allclose(compiled(ids).logits, twin(ids).logits, atol=1e-5)
    assert counter.frame_count == 1 and not counters["graph_break"]


@every
@pytest.mark.parametrize("num_slots", [1, 3])
def test_gradients_of_a_compiled_model(small_llama: nn.Module, ids: Tensor, scramble, name: str, num_slots) -> None:
    model = small_llama.train()
    scramble(inject(model, spec_of(name), num_slots))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for slots in (1, [1, 0, num_slots, 1]):
        with route(slots):
            out = model(ids).logits
            out.square().sum().backward()
            truth = gradients(model)
            found = compiled(ids).logits
            found.square().sum().backward()
        assert torch.allclose(found, out, atol=1e-5)
        assert (gradients(model) - truth).norm() < 1e-5 * truth.norm()


@every
def test_adapters_loaded_side_by_side_are_compiled(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    adapters = []
    for seed, spec in enumerate((spec_of(name), spec_of(name), AdapterSpec(name, rank=2))):
        bank = inject(small_llama, spec)
        scramble(bank, seed)
        adapters.append(extract(bank, bank.first))
        eject(small_llama)
    a, b, other = load(small_llama, adapters)
    compiled = torch.compile(small_llama, backend="aot_eager", fullgraph=True)
    for slots in ([a, b, other, 0], [other, 0, 0, a]):
        with torch.no_grad(), route(slots):
            assert torch.allclose(compiled(ids).logits, small_llama(ids).logits, atol=1e-5)
    banks_of(small_llama)[0].put(a, adapters[1])
    with torch.no_grad(), route(a):
        assert torch.allclose(compiled(ids).logits, small_llama(ids).logits, atol=1e-5)


def test_what_is_compiled_before_its_first_forward_draws_its_basis(
    small_llama: nn.Module, ids: Tensor, scramble
) -> None:
    scramble(inject(small_llama, AdapterSpec(rank=5, seed=77)))
    with torch.no_grad():
        found = torch.compile(small_llama, backend="aot_eager", fullgraph=True)(ids).logits
        assert torch.allclose(found, small_llama(ids).logits, atol=1e-5)


@pytest.mark.slow
def test_inductor_compiles_it(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, spec_of("vera"), 2))
    compiled = torch.compile(small_llama, fullgraph=True)
    with torch.no_grad(), route([1, 0, 2, 1]):
        assert torch.allclose(compiled(ids).logits, small_llama(ids).logits, atol=1e-5)
