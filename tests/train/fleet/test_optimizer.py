"""Slots that step together move as each would with torch.optim.AdamW and clip_grad_norm_ of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import make_classifier, make_model
from torch import Tensor, nn

from polyvera.adapter.bank import Bank
from polyvera.adapter.inject import inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.train.fleet import adamw
from polyvera.train.fleet.optimizer import SlotAdamW, param_groups
from polyvera.train.recipe import Recipe

NUM_SLOTS = 4
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CHOICES: dict[str, dict[str, Any]] = {
    "no clip": {"clip": 1e9},
    "every gradient clipped": {"clip": 0.01},
    "some clipped, with decay": {"clip": 20.0, "weight_decay": 0.1},
}


@dataclass(frozen=True)
class Way:
    """A way to make a step, and how many a test has the time to make."""

    step: Callable[..., None]
    num_steps: int = 50


@pytest.fixture(params=["library", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Either way; without a GPU, Triton's interpreter runs the kernel."""
    if request.param == "library":
        return Way(adamw.adamw_step)
    pytest.importorskip("triton")
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernel = importlib.import_module("polyvera.train.fleet.adamw_kernel")
    kernel = importlib.reload(kernel)  # what was imported without the interpreter would want a GPU
    return Way(kernel.adamw_step, 50 if CUDA else 7)


def recipe(**choices: Any) -> Recipe:
    return Recipe(model="tiny", data="memory", lr=0.01, head_lr=0.002, **choices)


def bank_of(method: str, with_head: bool) -> Bank:
    model = (make_classifier() if with_head else make_model()).to(DEVICE)
    spec = AdapterSpec(method, rank=4, head=("classifier",) if with_head else ())
    return inject(model, spec, NUM_SLOTS)


@dataclass
class Alone:
    """One slot's numbers by themselves."""

    params: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    max_norm: float

    @classmethod
    def of(cls, bank: Bank, index: int, recipe: Recipe) -> Alone:
        groups = [
            {"params": [nn.Parameter(bank.flat[index, g.columns].clone())], "lr": g.lr}
            for g in param_groups(bank.layout, recipe)
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        return cls([group["params"][0] for group in groups], optimizer, recipe.clip)

    def step(self, grads: list[Tensor], factor: float) -> None:
        for parameter, grad in zip(self.params, grads, strict=True):
            parameter.grad = grad.clone()
        nn.utils.clip_grad_norm_(self.params, self.max_norm)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def advance(optimizer: SlotAdamW, indices: list[int], factors: list[float]) -> None:
    norms = optimizer.norms().tolist()
    optimizer.step(indices, factors, [norms[i] for i in indices])


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_slots_that_step_together_move_as_each_alone(
    way: Way, method: str, with_head: bool, choices: dict[str, Any]
) -> None:
    """Over steps in which slots come in late, pause, and are at other places of their schedules than the others."""
    bank, own = bank_of(method, with_head), recipe(**choices)
    optimizer = SlotAdamW(bank, own)
    optimizer.moments.kernel = way.step
    alone = [Alone.of(bank, index, own) for index in range(NUM_SLOTS)]
    for number in range(way.num_steps):
        indices = [i for i in range(NUM_SLOTS) if number >= i and number % (i + 2)]
        factors = [min(1.0, (number + 1) / 10) / (1 + i % 2) for i in indices]
        for index in indices:
            optimizer.grads[index].normal_(std=10.0 ** (index - 2))
        for index, factor in zip(indices, factors, strict=True):
            alone[index].step([optimizer.grads[index, g.columns] for g in optimizer.groups], factor)
        advance(optimizer, indices, factors)
        assert not optimizer.grads.any()
    for index in range(NUM_SLOTS):
        for parameter, group in zip(alone[index].params, optimizer.groups, strict=True):
            found, truth = bank.flat[index, group.columns], parameter.detach()
            assert (found - truth).norm() < 1e-5 * truth.norm()


def test_slots_that_make_no_step_keep_every_bit(way: Way) -> None:
    """Their gradients too, which may be those of a pass that has not been stepped on yet."""
    bank = bank_of(next(iter(METHODS)), False)
    optimizer = SlotAdamW(bank, recipe(weight_decay=0.5, clip=0.1))
    optimizer.moments.kernel = way.step
    for tensor in (bank.flat, optimizer.grads, optimizer.exp_avg, optimizer.exp_avg_sq):
        tensor.uniform_(1.0, 2.0)
    optimizer.grads[3] = torch.nan
    tensors = (bank.flat, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.grads)
    before = [tensor.clone() for tensor in tensors]
    advance(optimizer, [1], [1.0])
    for was, now in zip(before, tensors, strict=True):
        assert not torch.equal(was[1], now[1]) and now[1].isfinite().all()
        for index in (0, 2, 3):
            assert torch.equal(was[index].view(torch.int32), now[index].view(torch.int32))
    assert optimizer.steps == [0, 1, 0, 0]


def test_a_slot_is_restored_from_its_state_and_reset_for_another() -> None:
    bank, own = bank_of(next(iter(METHODS)), True), recipe()
    one, other = SlotAdamW(bank, own), SlotAdamW(bank_of(next(iter(METHODS)), True), own)
    for _ in range(3):
        one.grads.normal_()
        advance(one, [0, 1], [1.0, 1.0])
    other.restore(2, {name: tensor.clone() for name, tensor in one.state(1).items()}, 3)
    grad = torch.randn_like(one.grads[1])
    one.grads[1], other.grads[2] = grad, grad
    advance(one, [1], [0.5])
    advance(other, [2], [0.5])
    assert torch.equal(bank.flat[1], other.bank.flat[2])
    assert one.state(1).keys() == other.state(2).keys() > other.state(0).keys()
    one.reset(1)
    assert one.steps == [3, 0, 0, 0] and one.state(1).keys() == other.state(0).keys()
    assert not any(tensor[1].any() for tensor in (one.grads, one.exp_avg, one.exp_avg_sq))


def test_what_was_computed_from_a_slot_is_computed_again_after_a_step() -> None:
    """‖W + ΔW‖ of a row with a magnitude, which a layer keeps while nothing is written."""
    bank = bank_of(next(name for name, row in METHODS.items() if "m" in row.trained), False)
    optimizer, layer = SlotAdamW(bank, recipe()), next(iter(bank.layers.values()))
    for _ in range(2):
        optimizer.grads.normal_()
        before = layer.row_norm(0).clone()
        advance(optimizer, [0], [1.0])
    assert not torch.equal(layer.row_norm(0), before)
    assert torch.equal(layer.row_norm(0), layer.norm_of(layer.of_slot(0)))
