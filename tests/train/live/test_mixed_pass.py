"""Mixed batches give what each pass alone gives, whatever its loss; and what a model says of plain rows."""

import numpy as np
import pytest
import torch
from live_runs import live, rows_of
from torch.nn import functional as F

from polyvera.adapter.route import route
from polyvera.train.live.datum import Datum
from polyvera.train.live.operation import Pass
from polyvera.train.live.token_loss import Objective


def policy_rows(seed):
    draw = np.random.RandomState(seed)
    return tuple(
        Datum(
            row.tokens,
            row.positions,
            row.targets,
            {
                "logprobs": draw.uniform(-4, -2, len(row)).astype(np.float32),
                "advantages": draw.randn(len(row)).astype(np.float32),
            },
        )
        for row in rows_of(seed, 4)
    )


PASSES = [
    Pass(rows_of(1, 5)),
    Pass(policy_rows(2), Objective("ppo")),
    Pass(policy_rows(3), Objective("importance_sampling")),
]


def perturb(trainer):
    trainer.bank.flat += 0.1 * torch.randn(trainer.bank.flat.shape, generator=torch.Generator().manual_seed(0))
    trainer.bank.version += 1


@pytest.mark.parametrize("method", ["vera", "lora", "dvora"])
def test_passes_of_different_losses_share_batches(method):
    with live(method) as trainer:
        perturb(trainer)
        passes = list(zip(trainer.bank.slots, PASSES, strict=True))
        together = trainer.passes.run(passes)
        grads = trainer.moments.grads.clone()
        trainer.moments.grads.zero_()
        for number, one in enumerate(passes):
            [apart] = trainer.passes.run([one])
            assert together[number].loss == pytest.approx(apart.loss, rel=1e-4)
            for found, truth in zip(together[number].logprobs, apart.logprobs, strict=True):
                np.testing.assert_allclose(found, truth, atol=1e-4)
        assert (grads - trainer.moments.grads).norm() < 1e-4 * grads.norm()
        assert trainer.passes.traffic.batches > 3


def test_logprobs_and_loss_are_the_models():
    with live("lora") as trainer:
        perturb(trainer)
        slot, rows = trainer.bank.slots[1], rows_of(4, 2)
        [found] = trainer.passes.run([(slot, Pass(rows, backward=False))])
        assert not trainer.moments.grads.any()
        loss = 0.0
        for row, logprobs in zip(rows, found.logprobs, strict=True):
            with torch.no_grad(), route(slot):
                logits = trainer.base.model(torch.from_numpy(row.tokens)[None]).logits[0]
            truth = F.log_softmax(logits, -1)[torch.arange(len(row)), torch.from_numpy(row.targets)]
            np.testing.assert_allclose(logprobs, truth, atol=1e-4)
            loss -= float((truth * torch.from_numpy(row.inputs["weights"])).sum())
        assert found.loss == pytest.approx(loss, rel=1e-4)


def test_the_pace_hears_of_each_batch():
    with live() as trainer:
        heard = []
        trainer.passes.pace = heard.append
        trainer.passes.run([(trainer.bank.slots[0], PASSES[0])])
        assert len(heard) == trainer.passes.traffic.batches and min(heard) > 0
