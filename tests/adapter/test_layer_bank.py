"""One layer's share of a bank: its output is the equation with its own matrices, its norm that of W + ΔW."""

import pytest
import torch
from torch import nn

from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.equation import delta_weight
from polyvera.adapter.inject import inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec

SLOTS = 2
every = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def made(small_llama, scramble):
    """The model, its bank, and the first of its layers, by method."""

    def of(method, **choices):
        bank = inject(small_llama, AdapterSpec(method, rank=3, **choices), SLOTS)
        scramble(bank)
        return small_llama, bank, next(iter(bank.layers.values()))

    return of


def adapted(layer, index):
    """W + ΔW, its rows of the length m where there is one."""
    own = layer.matrices(index)
    m = own.pop("m", None)
    whole = dense_weight(layer.base) + delta_weight(**own, scale=layer.site.scale)
    return whole if m is None else whole * (m / whole.norm(dim=1))[:, None]


@every
@pytest.mark.parametrize("slots", [1, [1, 2, 0], [[1, 0], [2, 2], [0, 1]]])
def test_a_layer_gives_the_equation_of_each_slot(made, method, slots):
    model, _, layer = made(method)
    x = torch.randn(3, 2, layer.site.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), route(torch.tensor(slots) if isinstance(slots, list) else slots):
        found = model.get_submodule(layer.site.name)(x)
    weights = [dense_weight(layer.base), *(adapted(layer, index) for index in range(SLOTS))]
    chosen = torch.tensor(slots)
    chosen = chosen.view(*chosen.shape, *(1,) * (2 - chosen.dim())).expand(3, 2)
    for row in range(3):
        for token in range(2):
            weight = weights[int(chosen[row, token])]
            torch.testing.assert_close(
                found[row, token], layer.base.bias + weight @ x[row, token], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if "m" in row.factors])
def test_a_norm_is_that_of_the_whole_weight_until_the_slot_changes(made, method, scramble):
    _, bank, layer = made(method)
    for index in range(SLOTS):
        own = layer.matrices(index)
        own.pop("m")
        whole = dense_weight(layer.base) + delta_weight(**own, scale=layer.site.scale)
        torch.testing.assert_close(layer.row_norm(index), whole.norm(dim=1))
        assert layer.row_norm(index) is layer.row_norm(index)
    before = layer.row_norm(0)
    scramble(bank, seed=5)
    assert not torch.equal(layer.row_norm(0), before)
    layer.keep_norm(0, before)
    assert layer.row_norm(0) is before


@every
def test_a_slot_is_a_view_and_a_layer_says_what_it_holds(made, method):
    _, bank, layer = made(method)
    own = layer.of_slot(1)
    assert set(own) == set(bank.layout.method.trained)
    for letter, tensor in own.items():
        tensor.data.fill_(7.0)
        assert (getattr(layer, letter)[1] == 7.0).all() and not (getattr(layer, letter)[0] == 7.0).all()
    assert isinstance(layer.base, nn.Linear)
    assert all(word in layer.extra_repr() for word in (bank.layout.method.name, "rank 3", f"{SLOTS} slots", "bytes"))
