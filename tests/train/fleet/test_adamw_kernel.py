"""The kernel makes the step that its twin makes; without a GPU, Triton's interpreter runs it."""

import importlib

import pytest
import torch

from polyvera.train.fleet.adamw import AdamSettings, ParamGroup, SlotStep, SlotTensors, adamw_step

pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SLOTS = 3


@pytest.fixture
def kernel(monkeypatch):
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.reload(importlib.import_module("polyvera.train.fleet.adamw_kernel"))


def tensors(wide):
    draw = torch.Generator().manual_seed(0)
    flat, grads, first, second = (torch.randn(SLOTS, wide, generator=draw).to(DEVICE) for _ in range(4))
    return SlotTensors(flat, grads, first, second.square())


@pytest.mark.parametrize("wide", [1, 7, 1030])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_kernel_makes_the_step_of_its_twin(kernel, wide, weight_decay):
    groups = [ParamGroup(0, wide // 2, 0.01), ParamGroup(wide // 2, wide, 0.002)]
    groups = [group for group in groups if group.begin < group.end]
    steps = [SlotStep(2, 5, 0.5, 1.0), SlotStep(0, 1, 1.0, 0.1)]
    ours, twins = tensors(wide), tensors(wide)
    kernel.adamw_step(ours, groups, steps, AdamSettings(weight_decay=weight_decay))
    adamw_step(twins, groups, steps, AdamSettings(weight_decay=weight_decay))
    for name in ("flat", "grads", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(getattr(ours, name), getattr(twins, name))
    assert torch.equal(ours.flat[1], tensors(wide).flat[1])
