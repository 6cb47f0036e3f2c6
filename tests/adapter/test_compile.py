"""torch.compile of what holds banks: one graph, for every route; by a block for every row, and by a whole model."""

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
    return AdapterSpec(name, rank=4, targets=("gate_proj", "up_proj"))


@pytest.fixture(autouse=True)
def fresh(small_llama: nn.Module) -> None:
    del small_llama.model.layers[1:]  # a compiler unrolls layers
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def block(small_llama: nn.Module) -> nn.Module:
    return small_llama.model.layers[0].mlp


@pytest.fixture
def hidden(block: nn.Module) -> Tensor:
    return torch.randn(4, 9, block.gate_proj.in_features, generator=torch.Generator().manual_seed(5))


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def assert_one_graph(model: nn.Module, given: Tensor) -> None:
    """For five routes. given: an input of the model, whose output is a tensor or has logits."""
    twin = copy.deepcopy(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for slots in (2, 0, [2, 0, 3, 1], [1, 1, 1, 1], 3):
        with torch.no_grad(), route(slots):
            found, truth = compiled(given), twin(given)
        assert torch.allclose(getattr(found, "logits", found), getattr(truth, "logits", truth), atol=1e-5)
    assert counter.frame_count == 1 and not counters["graph_break"]


@every
def test_one_graph_without_a_break_serves_every_route(block: nn.Module, hidden: Tensor, scramble, name: str) -> None:
    scramble(inject(block, spec_of(name), 3))
    assert_one_graph(block, hidden)


def test_a_whole_model_is_one_graph(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, AdapterSpec("dvora", rank=4, targets=("v_proj", "gate_proj", "up_proj")), 3))
    assert_one_graph(small_llama, ids)


@every
@pytest.mark.parametrize("num_slots", [1, 3])
def test_gradients_of_a_compiled_block(block: nn.Module, hidden: Tensor, scramble, name: str, num_slots: int) -> None:
    scramble(inject(block.train(), spec_of(name), num_slots))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for slots in (1, [1, 0, num_slots, 1]):
        with route(slots):
            out = block(hidden)
            out.square().sum().backward()
            truth = gradients(block)
            found = compiled(hidden)
            found.square().sum().backward()
        assert torch.allclose(found, out, atol=1e-5)
        assert (gradients(block) - truth).norm() < 1e-5 * truth.norm()


@every
def test_adapters_loaded_side_by_side_are_compiled(block: nn.Module, hidden: Tensor, scramble, name: str) -> None:
    adapters = []
    for seed, spec in enumerate((spec_of(name), spec_of(name), AdapterSpec(name, rank=2, targets=("down_proj",)))):
        bank = inject(block, spec)
        scramble(bank, seed)
        adapters.append(extract(bank, bank.first))
        eject(block)
    a, b, other = load(block, adapters)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for slots in ([a, b, other, 0], [other, 0, 0, a]):
        with torch.no_grad(), route(slots):
            assert torch.allclose(compiled(hidden), block(hidden), atol=1e-5)
    banks_of(block)[0].put(a, adapters[1])
    with torch.no_grad(), route(a):
        assert torch.allclose(compiled(hidden), block(hidden), atol=1e-5)


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
