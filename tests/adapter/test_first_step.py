"""The default rate against the thing itself: Adam's first step, made, and the change of W that it makes, measured."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.equation import delta_weight
from polyvera.adapter.first_step import WIDTH, default_lr, reach
from polyvera.adapter.inject import extract, inject
from polyvera.adapter.method import METHODS, SVD
from polyvera.adapter.route import route
from polyvera.adapter.spec import BASIS_INITS, AdapterSpec

LR = 1e-3
CASES: list[dict[str, Any]] = [
    *({"method": method} for method in METHODS),
    {"method": "lora", "rank": 2, "alpha": 16.0},
    {"method": "lora", "rank": 32, "scaling": "alpha/sqrt(r)"},
    {"method": "vera", "rank": 16},
    {"method": "vera", "rank": 512, "d_init": 1.0},
    *({"method": "vera", "init": init} for init in BASIS_INITS if init not in (AdapterSpec().basis_init, SVD)),
    {"method": "vera", "init": SVD, "rank": 128},
    {"method": "rasta", "rank": 64},
]


@pytest.mark.parametrize("choices", CASES, ids=str)
def test_reach_is_the_change_of_w_in_a_first_step(choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 200, bias=False))
    spec = AdapterSpec(**choices, targets="all-linear")
    bank = inject(model, spec)
    with route(bank.first):
        (model(torch.randn(64, WIDTH)) * torch.randn(64, 200)).sum().backward()
    torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR).step()
    changed = _delta_weight(extract(bank, bank.first)).square().mean().sqrt() * WIDTH**0.5
    assert float(changed) / LR == pytest.approx(reach(spec), rel=0.25)


def _delta_weight(adapter: Adapter) -> Tensor:
    site, basis = adapter.layout.sites[0], adapter.basis()
    letters = {key.rpartition(".")[2]: t for key, t in adapter.tensors.items()}
    letters |= adapter.frozen(site)
    if basis is not None:
        letters |= {"A": basis.A, "B": basis.B}
    return delta_weight(*(letters.get(letter) for letter in "ABdb"), site.scale, letters.get("C"))


@pytest.mark.parametrize("choices", CASES, ids=str)
def test_the_default_rate_reaches_as_far_as_the_rate_of_the_row(choices: dict[str, Any]) -> None:
    spec, own = AdapterSpec(**choices), AdapterSpec(choices["method"])
    assert default_lr(own) == METHODS[choices["method"]].lr
    assert default_lr(spec) * reach(spec) == pytest.approx(own.row.lr * reach(own))
    assert default_lr(AdapterSpec(**choices, magnitude=True)) == default_lr(spec)


def test_lora_and_vera_reach_alike() -> None:
    lora, vera = (AdapterSpec(method) for method in ("lora", "vera"))
    assert default_lr(lora) * reach(lora) == pytest.approx(default_lr(vera) * reach(vera), rel=0.25)
