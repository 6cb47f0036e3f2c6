from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from peft.tuners.adalora.model import AdaLoraModel
from tiny_models import make_model
from torch import nn

from polyvera.adapter.bank import Bank
from polyvera.adapter.inject import extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError
from polyvera.train.budget import Allocator, Schedule, compacted, orthogonality, schedule
from polyvera.train.rank_budget import Budget

SHRINKING = [name for name, row in METHODS.items() if row.shrinks]
OWN_PAIR = [name for name in SHRINKING if {"A", "B"} <= set(METHODS[name].trained)]
PLAN = {"total": 40, "warmup": 6, "final": 10, "interval": 4}
RANK, KEPT, LR = 6, 2, 0.5


def bank_of(method: str, rank: int = RANK) -> Bank:
    bank = inject(make_model(), AdapterSpec(method, rank=rank))
    torch.manual_seed(1)
    for parameter in parameters(bank):
        parameter.data.normal_()
    return bank


def parameters(bank: Bank) -> list[nn.Parameter]:
    return [p for layer in bank.layers.values() for p in layer.parameters()]


def plan(bank: Bank) -> Schedule:
    num_layers = len(bank.layers)
    return Schedule(start=RANK * num_layers, end=KEPT * num_layers, **PLAN)


def walk(bank: Bank, step: int) -> None:
    """A gradient and an update that depend on the step alone."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters(bank):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        parameter.data -= LR * parameter.grad


class Peft(nn.Module):
    """The same matrices under PEFT's names."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        shapes = {
            "lora_A": lambda layer: layer.A[0],
            "lora_E": lambda layer: layer.d[0][:, None],
            "lora_B": lambda layer: layer.B[0],
        }
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {k: nn.ParameterDict({"default": take(layer).detach().clone()}) for k, take in shapes.items()}
            )
            for layer in bank.layers.values()
        )
        self.config = SimpleNamespace(
            beta1=0.85,
            beta2=0.85,
            tinit=PLAN["warmup"],
            tfinal=PLAN["final"],
            total_step=PLAN["total"],
            deltaT=PLAN["interval"],
            target_r=KEPT,
            orth_reg_weight=1.0,
        )
        self.allocator = RankAllocator(self, self.config, "default")

    def copy_step(self, bank: Bank) -> None:
        for own, layer in zip(self.layers, bank.layers.values(), strict=True):
            for name, letter in (("lora_A", "A"), ("lora_E", "d"), ("lora_B", "B")):
                parameter = layer.get_parameter(letter)
                own[name]["default"].grad = parameter.grad[0].reshape(own[name]["default"].shape).clone()
                own[name]["default"].data -= LR * own[name]["default"].grad

    def allocate(self, step: int) -> None:
        whole = SimpleNamespace(
            peft_config={"default": self.config},
            trainable_adapter_name="default",
            rankallocator=self.allocator,
            model=self,
        )
        AdaLoraModel.update_and_allocate(whole, step)


@pytest.mark.parametrize("method", OWN_PAIR)
def test_the_same_triplets_are_kept_as_in_peft_at_every_step(method: str) -> None:
    bank = bank_of(method)
    theirs, ours = Peft(bank), Allocator(bank, plan(bank))
    seen = set()
    for step in range(PLAN["total"]):
        walk(bank, step)
        theirs.copy_step(bank)
        ours.step(step)
        theirs.allocate(step)
        for layer, other in zip(bank.layers.values(), theirs.layers, strict=True):
            assert torch.equal(layer.d[0], other["lora_E"]["default"].view(-1)), f"step {step}"
        seen.add(tuple(ours.ranks.values()))
    assert len(seen) > 2
    assert sum(ours.ranks.values()) == KEPT * len(bank.layers)


def test_the_budget_is_pefts_cubic_one() -> None:
    bank = bank_of(OWN_PAIR[0])
    theirs, ours = Peft(bank).allocator, plan(bank)
    for step in range(PLAN["total"] - PLAN["final"] + 1):
        budget, masks = theirs.budget_schedule(step)
        assert ours.kept(step) == budget
        assert ours.prunes(step) == (masks or step == ours.freezes)


def test_orthogonality_is_pefts() -> None:
    bank = bank_of(OWN_PAIR[0])
    model = Peft(bank)
    model.forward = lambda: SimpleNamespace(loss=torch.zeros(()))  # type: ignore[method-assign, assignment]
    whole = SimpleNamespace(model=model, peft_config={"default": model.config}, trainable_adapter_name="default")
    expected = AdaLoraModel.forward(whole).loss
    torch.testing.assert_close(orthogonality(bank), expected.detach(), rtol=1e-6, atol=0)
    assert all(orthogonality(bank_of(name)) is None for name in SHRINKING if name not in OWN_PAIR)


@pytest.mark.parametrize("method", SHRINKING)
def test_every_row_that_trains_d_can_shrink(method: str) -> None:
    bank = bank_of(method)
    allocator = Allocator(bank, plan(bank))
    revived, uneven, before = False, False, {}
    for step in range(PLAN["total"]):
        walk(bank, step)
        allocator.step(step)
        masks = {site: mask.clone() for site, mask in allocator.masks.items()}
        revived |= any(bool((mask & ~before[site]).any()) for site, mask in masks.items() if site in before)
        uneven |= len({int(mask.sum()) for mask in masks.values()}) > 1  # some layers keep more than others
        if step > allocator.schedule.freezes:
            assert all(torch.equal(mask, before[site]) for site, mask in masks.items())
        before = masks
        for site, mask in masks.items():
            if step >= allocator.schedule.freezes or allocator.schedule.prunes(step):
                assert torch.equal(bank.layers[site].d[0] != 0, mask)
    assert revived and uneven
    assert sum(allocator.ranks.values()) == KEPT * len(bank.layers)


@pytest.mark.parametrize("method", SHRINKING)
def test_its_state_goes_on_where_it_was(method: str) -> None:
    whole, part = bank_of(method), bank_of(method)
    ours, first = Allocator(whole, plan(whole)), Allocator(part, plan(part))
    for step in range(PLAN["total"]):
        if step == 17:
            state = first.state()
            first = Allocator(part, plan(part))
            first.restore(state)
        for bank, allocator in ((whole, ours), (part, first)):
            walk(bank, step)
            allocator.step(step)
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(part), strict=True))
    assert ours.ranks == first.ranks


@pytest.mark.parametrize("method", OWN_PAIR)
def test_a_compacted_adapter_computes_the_same_with_fewer_numbers(method: str) -> None:
    model = make_model()
    spec = AdapterSpec(method, rank=RANK)
    bank = inject(model, spec)
    for parameter in parameters(bank):
        parameter.data.normal_(std=0.3)
    layers = list(bank.layers.values())
    layers[0].d.data.zero_()  # a layer may lose all
    layers[1].d.data[0, ::2] = 0
    adapter = extract(bank, 1, model)
    small = compacted(adapter)
    assert small.num_params < adapter.num_params
    assert small.layout.sites[0].rank == 0
    ids = torch.arange(12).view(2, 6)
    outputs = []
    for each in (adapter, small):
        fresh = make_model()
        load(fresh, each)
        outputs.append(fresh(ids).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in SHRINKING if name not in OWN_PAIR])
def test_a_shared_basis_has_nothing_to_compact(method: str) -> None:
    bank = bank_of(method)
    adapter = extract(bank, 1)
    assert compacted(adapter) is adapter


def test_a_run_too_short_for_its_phases_is_refused() -> None:
    bank = bank_of(SHRINKING[0])
    with pytest.raises(RecipeError, match="6 warm-up and 10 final steps leave none of the 16 steps"):
        schedule(Budget(rank=2, warmup=6, final=10), bank, 16)
    whole = schedule(Budget(rank=1.5), bank, 200)
    assert whole == replace(whole, start=RANK * 4, end=6, warmup=20, final=60, interval=2)
