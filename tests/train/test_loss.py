"""The loss of each row, with logits for the target tokens alone, is that of the whole logits."""

import pytest
import torch
from tiny_models import make_classifier, make_model
from torch.nn import functional as F

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.encoding import IGNORED
from polyvera.data.target_tokens import TargetTokens
from polyvera.train.checkpoint import trained
from polyvera.train.loss import row_losses

ROWS, LENGTH = 3, 9


@pytest.fixture
def batch():
    """Rows of tokens, of which each predicts others, and one none."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 40, (ROWS, LENGTH), generator=draw)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=draw) < 0.5, IGNORED)
    labels[1] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "lm_head")])
def test_rows_lose_what_the_whole_logits_say(batch, targets):
    inputs, labels = batch
    model = make_model()
    inject(model, AdapterSpec(rank=2, targets=targets))
    found = row_losses(model, inputs, TargetTokens.of(labels))
    logits = model(**inputs).logits[:, :-1].float()
    naive = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none").sum(1)
    torch.testing.assert_close(found, naive)
    assert found[1] == 0 and (found[[0, 2]] > 0).all()
    parameters = list(trained(model).values())
    ours, theirs = (torch.autograd.grad(x.sum(), parameters, retain_graph=True) for x in (found, naive))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_class_is_one_target_a_row(batch):
    inputs, _ = batch
    model, labels = make_classifier(), torch.tensor([1, 0, 1])
    found = row_losses(model, inputs, TargetTokens.of(labels))
    torch.testing.assert_close(found, F.cross_entropy(model(**inputs).logits, labels, reduction="none"))
