"""hashing: a few numbers make every letter of any method, train as themselves, and come back as they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.hashing import hashing_of
from polyvera.adapter.inject import extract, inject, load
from polyvera.adapter.layout import THETA, layout_of
from polyvera.adapter.merge import merge
from polyvera.adapter.method import METHODS, OWN_WIDTH
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SpecError
from polyvera.plan import cost
from polyvera.store.file.codec import decode, encode
from polyvera.store.registry import Registry

SHAPES = {f"layers.{i}.{name}": (8, out) for i in range(3) for name, out in (("q", 8), ("v", 6))} | {"out": (6, 10)}
HEAD = {"score.weight": (2, 8)}
SIZE = 7
each_method = pytest.mark.parametrize("method", METHODS)
both = pytest.mark.parametrize("magnitude", [False, True])


def made(method: str, magnitude: bool = False, seed: int = 0, **choices: object) -> Adapter:
    spec = AdapterSpec(method, 4, head=("score",), hash_size=SIZE, magnitude=magnitude, **choices)  # type: ignore[arg-type]
    layout = layout_of(spec, SHAPES, HEAD)
    return Adapter(spec, layout, torch.randn(layout.num_params, generator=torch.Generator().manual_seed(seed)))


@each_method
@both
def test_every_letter_is_its_start_plus_or_minus_one_of_few_numbers(method: str, magnitude: bool) -> None:
    adapter = made(method, magnitude)
    fresh = replace(adapter, flat=torch.zeros_like(adapter.flat))
    theta = adapter.flat[adapter.layout.entries[THETA].offset :][:SIZE]
    for key, value in adapter.tensors.items():
        letter = key.rpartition(".")[2]
        if letter in adapter.layout.method.hashed:
            moved = (value - fresh.tensors[key]).abs().flatten()
            assert all(torch.isclose(theta.abs(), one, atol=1e-6).any() for one in moved)
        else:
            entry = adapter.layout.entries[key]
            assert torch.equal(value.flatten(), adapter.flat[entry.offset : entry.offset + entry.size])


@each_method
@both
def test_numbers_come_back_from_what_they_made(method: str, magnitude: bool) -> None:
    adapter = made(method, magnitude)
    hashing = hashing_of(adapter.spec, adapter.layout)
    torch.testing.assert_close(hashing.fold(adapter.expanded), adapter.flat, rtol=0, atol=1e-6)
    counts = torch.bincount(hashing.index)
    assert len(counts) == SIZE and int(counts.max() - counts.min()) <= 1
    again = adapter_from(adapter.spec, SHAPES, adapter.tensors)
    torch.testing.assert_close(again.flat, adapter.flat, rtol=0, atol=1e-6)


@each_method
def test_a_file_holds_the_few_numbers_and_gives_back_every_bit(method: str) -> None:
    adapter = made(method)
    back = decode(encode(adapter))
    assert torch.equal(back.flat, adapter.flat) and back.layout.key() == adapter.layout.key()
    assert torch.equal(back.expanded, adapter.expanded)
    plan = cost(adapter.spec, SHAPES, 1, head=HEAD)
    row, rest = adapter.layout.method, 16  # the head's
    rest += sum(prod(row.shape(x, 4, *wide)) for wide in SHAPES.values() for x in set(row.trained) - set(row.hashed))
    assert plan.num_params == adapter.num_params == SIZE + rest and plan.stored_bytes == 4 * (SIZE + rest)
    assert plan.slot_bytes == 4 * adapter.layout.expanded.num_params


@each_method
def test_the_map_is_of_the_seed_and_of_the_size(method: str) -> None:
    one, other = made(method), made(method, targets="all-linear")
    assert torch.equal(one.expanded, other.expanded)
    assert hashing_of(one.spec, one.layout) is hashing_of(one.spec, one.layout.expanded)
    spec = replace(one.spec, seed=5)
    assert layout_of(spec, SHAPES, HEAD).key() != one.layout.key()
    index = hashing_of(spec, layout_of(spec, SHAPES, HEAD)).index
    assert not torch.equal(index, hashing_of(one.spec, one.layout).index)


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits.float().pow(2).mean()


@each_method
@both
def test_a_step_is_that_of_the_few_numbers_themselves(small_llama, ids, method: str, magnitude: bool) -> None:
    """The reference: θ as the one leaf of an Adam, whose letters autograd makes."""
    spec = AdapterSpec(method, 4, hash_size=SIZE, magnitude=magnitude)
    bank = inject(small_llama, spec)
    hashing, trained = bank.hashing, [p for p in small_llama.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01, eps=1e-30)
    theta = bank.extract(bank.first).flat.clone().requires_grad_()
    reference = torch.optim.Adam([theta], lr=0.01, eps=1e-30)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(small_llama, ids).backward()
        raw = torch.zeros(bank.layout.num_params)
        for entry, p in bank._parameters():
            raw[entry.offset : entry.offset + entry.size] = p.grad.flatten()
        letters = hashing.sign * raw[hashing.columns]
        theta.grad = torch.zeros_like(theta)
        at = hashing.layout.entries[THETA].offset
        theta.grad[at : at + SIZE] = torch.zeros(SIZE).index_add(0, hashing.index, letters)
        theta.grad[hashing.kept[0]] = raw[hashing.kept[1]]
        isometric = theta.grad.clone()
        isometric[at : at + SIZE] /= torch.bincount(hashing.index).sqrt()
        for _ in range(2):  # which is the same as once
            bank.tie_gradients()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1e9)
            torch.testing.assert_close(norm, isometric.norm(), rtol=1e-4, atol=1e-12)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(bank.extract(bank.first).flat, theta.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(bank.extract(bank.first).expanded, bank.take(bank.first), rtol=1e-4, atol=1e-5)


@each_method
def test_the_gradient_of_a_number_is_the_sum_of_what_it_makes(method: str) -> None:
    adapter = made(method)
    hashing = hashing_of(adapter.spec, adapter.layout)
    weights = torch.randn(adapter.layout.expanded.num_params, generator=torch.Generator().manual_seed(1))
    theta = torch.zeros(SIZE, requires_grad=True)
    letters = hashing.start + hashing.sign * theta[hashing.index]
    (letters * weights[hashing.columns]).sum().backward()
    grads = weights[None].clone()
    hashing.tie(grads)
    first, counts = hashing.first, torch.bincount(hashing.index)
    torch.testing.assert_close(grads[0, hashing.columns[first]] * hashing.sign[first] * counts, theta.grad)
    assert torch.equal(grads[0, hashing.kept[1]], weights[hashing.kept[1]])


@each_method
def test_a_hashed_adapter_shares_a_bank_and_a_batch_with_plain_ones(
    small_llama, ids, scramble, tmp_path, method
) -> None:
    plain_spec, spec = AdapterSpec(method, 4), AdapterSpec(method, 4, hash_size=SIZE)
    adapters = []
    for one in (plain_spec, spec):
        model = copy.deepcopy(small_llama)
        bank = inject(model, one)
        if one.hash_size is None:
            scramble(bank)
        else:
            fresh = bank.extract(bank.first)
            noise = torch.randn(fresh.flat.shape, generator=torch.Generator().manual_seed(3))
            bank.put(bank.first, replace(fresh, flat=fresh.flat + 0.1 * noise))
        adapters.append(extract(bank, bank.first, model))
    registry = Registry(tmp_path)
    adapters = [registry.get(registry.put(f"a{i}", adapter)) for i, adapter in enumerate(adapters)]
    alone = [copy.deepcopy(small_llama) for _ in adapters]
    outputs = []
    for model, adapter in zip(alone, adapters, strict=True):
        [slot] = load(model, adapter)
        with route(slot), torch.no_grad():
            outputs.append(model(input_ids=ids).logits)
    slots = load(small_llama, adapters)
    assert slots == [1, 2] and not torch.equal(*outputs)
    with route([slots[0], slots[1], slots[1], slots[0]]), torch.no_grad():
        mixed = small_llama(input_ids=ids).logits
    for row, which in enumerate((0, 1, 1, 0)):
        torch.testing.assert_close(mixed[row], outputs[which][row], rtol=1e-4, atol=1e-5)
    merged = merge(alone[1])
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, outputs[1], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused(small_llama) -> None:
    for wrong in (0, -1, 1.5):
        with pytest.raises(SpecError, match="hash_size"):
            AdapterSpec(hash_size=wrong)
    with pytest.raises(LayoutError, match="at least as many"):
        layout_of(AdapterSpec(rank=2, hash_size=10_000), SHAPES)
    bank = inject(small_llama, AdapterSpec(rank=4, hash_size=SIZE))
    other = bank.extract(bank.first)
    with pytest.raises(LayoutError, match="start from one of the same hash"):
        bank.put(bank.first, replace(other, spec=replace(other.spec, d_init=0.3)))
    tensors = {key: torch.randn(t.shape) for key, t in other.tensors.items()}
    shapes = {site.name: (site.in_features, site.out_features) for site in other.layout.sites}
    with pytest.raises(LayoutError, match="holds other numbers"):
        adapter_from(other.spec, shapes, tensors)


WIDE = [name for name, row in METHODS.items() if row.rank == OWN_WIDTH]


@pytest.mark.parametrize("method", WIDE)
def test_all_weights_are_a_projection_with_equal_orthogonal_columns(small_llama, ids, method: str) -> None:
    """W' = W + λ P θ of every adapted layer, where each number of ΔW is ± one of θ, in all layers together."""
    spec = AdapterSpec(method, hash_size=SIZE)
    bank = inject(small_llama, spec)
    fresh = bank.extract(bank.first)
    noise = torch.randn(fresh.flat.shape, generator=torch.Generator().manual_seed(2))
    adapter = replace(fresh, flat=fresh.flat + noise)
    bank.put(bank.first, adapter)
    num = sum(site.in_features * site.out_features for site in adapter.layout.sites)
    own = len(adapter.layout.sites) if "d" in adapter.layout.method.trained else 0
    assert adapter.num_params == SIZE + own and adapter.layout.expanded.num_params == num + own
    hashing = hashing_of(spec, adapter.layout)
    P = torch.zeros(num, SIZE).index_put_((torch.arange(num), hashing.index), hashing.sign)
    gram = P.T @ P
    assert torch.equal(gram, gram.diagonal().diag()) and int(gram.diagonal().max() - gram.diagonal().min()) <= 1
    with torch.no_grad():
        merged = merge(copy.deepcopy(small_llama))
        for site in adapter.layout.sites:
            key = f"{site.name}.weight"
            scale = adapter.tensors.get(f"{site.name}.d", torch.ones(1))
            wanted = small_llama.get_submodule(site.name).weight + scale * adapter.tensors[f"{site.name}.A"]
            torch.testing.assert_close(merged.get_parameter(key), wanted)
    assert torch.equal(fresh.tensors["model.layers.0.self_attn.q_proj.A"], torch.zeros(32, 32))
    assert all(torch.equal(t, torch.ones(1)) for key, t in fresh.tensors.items() if key.endswith(".d"))
