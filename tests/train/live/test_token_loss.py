"""Each loss is its formula, and its gradient is the formula's."""

import math

import pytest
import torch

from polyvera.errors import DataError
from polyvera.train.live.token_loss import TOKEN_LOSSES, Objective

P, Q, A = [-0.5, -1.0, -3.0, -0.1], [-1.0, -1.1, -0.5, 0.0], [2.0, -1.5, 1.0, 0.0]
CLIP = 0.8, 1.2


def clipped(r):
    return min(max(r, CLIP[0]), CLIP[1])


# What each loss is for one target, and its derivative by p.
TRUTH = {
    "cross_entropy": (lambda p, q, a: -a * p, lambda p, q, a: -a),
    "importance_sampling": (lambda p, q, a: -math.exp(p - q) * a, lambda p, q, a: -math.exp(p - q) * a),
    "ppo": (
        lambda p, q, a: -min(math.exp(p - q) * a, clipped(math.exp(p - q)) * a),
        lambda p, q, a: -math.exp(p - q) * a if math.exp(p - q) * a <= clipped(math.exp(p - q)) * a else 0.0,
    ),
    "cispo": (lambda p, q, a: -clipped(math.exp(p - q)) * p * a, lambda p, q, a: -clipped(math.exp(p - q)) * a),
    "gspo": (  # of rows with a target each
        lambda p, q, a: -min(math.exp(p - q) * a, clipped(math.exp(p - q)) * a),
        lambda p, q, a: -math.exp(p - q) * a if math.exp(p - q) * a <= clipped(math.exp(p - q)) * a else 0.0,
    ),
    "dro": (
        lambda p, q, a: -(p * a - 0.5 * 0.05 * (p - q) ** 2),
        lambda p, q, a: -(a - 0.05 * (p - q)),
    ),
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_loss_and_its_gradient_are_the_formulas(name):
    p = torch.tensor(P, requires_grad=True)
    inputs = {"weights": torch.tensor(A), "logprobs": torch.tensor(Q), "advantages": torch.tensor(A)}
    inputs |= {"sequence_ratio_mask": torch.ones(len(A)), "rows": torch.arange(len(A))}
    losses = Objective(name).losses(p, inputs)
    losses.sum().backward()
    value, slope = TRUTH[name]
    assert losses.tolist() == pytest.approx([value(*row) for row in zip(P, Q, A, strict=True)], abs=1e-6)
    assert p.grad.tolist() == pytest.approx([slope(*row) for row in zip(P, Q, A, strict=True)], abs=1e-6)


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo"])
def test_a_position_without_advantage_adds_nothing_whatever_its_logprob(name):
    p = torch.tensor([-200.0, -1.0], requires_grad=True)
    inputs = {"logprobs": torch.tensor([300.0, -1.0]), "advantages": torch.tensor([0.0, 1.0])}
    inputs["logprobs"][0] = -1e30
    Objective(name).losses(p, inputs).sum().backward()
    assert p.grad[0] == 0 and p.grad[1].isfinite()


def test_a_rows_targets_share_one_ratio():
    p = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    inputs = {"logprobs": torch.tensor([0.0, -2.1, -3.0]), "advantages": torch.tensor([0.0, 1.0, 2.0])}
    inputs |= {"sequence_ratio_mask": torch.tensor([0.0, 1.0, 1.0]), "rows": torch.tensor([0, 0, 0])}
    losses = Objective("gspo").losses(p, inputs)
    losses.sum().backward()
    ratio = math.exp(0.05)  # of the mean of 0.1 and 0
    assert losses.tolist() == pytest.approx([0.0, -ratio, -2 * ratio])
    assert p.grad.tolist() == pytest.approx([0.0, -ratio, -2 * ratio])


def test_parameters_replace_the_defaults():
    wide = Objective("ppo", (("clip_high_threshold", 9.0),))
    assert wide.params == {"clip_low_threshold": 0.8, "clip_high_threshold": 9.0}
    inputs = {"logprobs": torch.tensor([-2.0]), "advantages": torch.tensor([1.0])}
    assert wide.losses(torch.tensor([-1.0]), inputs).tolist() == pytest.approx([-math.e])


def test_what_no_row_of_the_table_has_is_refused():
    with pytest.raises(DataError, match="did you mean 'cross_entropy'"):
        Objective("crossentropy")
    with pytest.raises(DataError, match="takes beta, not 'alpha'"):
        Objective("dro", (("alpha", 1.0),))
    with pytest.raises(DataError, match="lacks advantages"):
        Objective("ppo").check(["logprobs"])
    Objective("ppo").check(["advantages", "logprobs", "mask"])
