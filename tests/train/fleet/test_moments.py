"""The state of slots beside their numbers; test_optimizer.py compares the steps with torch's."""

import pytest
import torch
from tiny_models import make_model

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.train.fleet import adamw
from polyvera.train.fleet.adamw import AdamSettings, ParamGroup
from polyvera.train.fleet.moments import SlotMoments, clip_factor, fastest_step


@pytest.fixture
def moments():
    return SlotMoments(inject(make_model(), AdapterSpec(rank=4), 3))


def test_slots_step_by_their_own_rates_and_others_stay(moments):
    before = moments.bank.flat.clone()
    moments.grads.fill_(1.0)
    group = ParamGroup(0, moments.bank.layout.num_params, 1.0)
    moments.step([group], AdamSettings(), [0, 2], [0.1, 0.3], [1.0, 1.0])
    moved = (before - moments.bank.flat).mean(dim=1)
    torch.testing.assert_close(moved, torch.tensor([0.1, 0.0, 0.3]))
    assert moments.steps == [1, 0, 1] and moments.grads[1].all() and not moments.grads[[0, 2]].any()
    version = moments.bank.version
    moments.step([group], AdamSettings(), [], [], [])
    assert moments.bank.version == version


def test_a_reset_slot_has_nothing(moments):
    for tensor in (moments.grads, moments.exp_avg, moments.exp_avg_sq):
        tensor.fill_(1.0)
    moments.steps[1] = 5
    moments.reset(1)
    assert moments.steps == [0, 0, 0] and moments.norms()[1] == 0 and moments.norms()[0] > 0
    assert not moments.exp_avg[1].any() and moments.exp_avg_sq[2].all()


def test_a_gradient_is_clipped_as_clip_grad_norm_does():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    norm = float(torch.nn.utils.clip_grad_norm_([parameter], 2.0))
    assert 3.0 * clip_factor(norm, 2.0) == pytest.approx(float(parameter.grad[0])) and clip_factor(1.0, 2.0) == 1.0


def test_a_cpu_steps_by_torch():
    assert fastest_step(torch.device("cpu")) is adamw.adamw_step
