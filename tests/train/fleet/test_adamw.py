"""A step for some slots is torch's own AdamW for the numbers of each, clipped; the others keep every bit."""

import pytest
import torch
from torch import nn

from polyvera.train.fleet.adamw import AdamSettings, ParamGroup, SlotStep, SlotTensors, adamw_step

SLOTS, WIDE = 4, 10
GROUPS = (ParamGroup(0, 6, 0.01), ParamGroup(6, WIDE, 0.002))


def tensors():
    draw = torch.Generator().manual_seed(0)
    flat, grads = (torch.randn(SLOTS, WIDE, generator=draw) for _ in range(2))
    return SlotTensors(flat, grads, torch.zeros(SLOTS, WIDE), torch.zeros(SLOTS, WIDE))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_slots_move_as_each_would_alone(weight_decay, clip):
    ours, draw = tensors(), torch.Generator().manual_seed(1)
    alone = {i: [nn.Parameter(ours.flat[i, g.columns].clone()) for g in GROUPS] for i in (0, 2)}
    optimizers = {
        i: torch.optim.AdamW(
            [{"params": [p], "lr": g.lr * (1 + i)} for p, g in zip(parts, GROUPS)], weight_decay=weight_decay
        )
        for i, parts in alone.items()
    }
    for number in range(1, 6):
        ours.grads.normal_(generator=draw)
        for i, parts in alone.items():
            for part, group in zip(parts, GROUPS, strict=True):
                part.grad = clip * ours.grads[i, group.columns]
            optimizers[i].step()
        steps = [SlotStep(i, number, 1.0 + i, clip) for i in alone]
        adamw_step(ours, GROUPS, steps, AdamSettings(weight_decay=weight_decay))
        assert not ours.grads[[0, 2]].any() and ours.grads[[1, 3]].all()
    for i, parts in alone.items():
        torch.testing.assert_close(ours.flat[i], torch.cat([p.detach() for p in parts]))
    before = tensors().flat
    assert torch.equal(ours.flat[[1, 3]], before[[1, 3]]) and not ours.exp_avg[[1, 3]].any()
