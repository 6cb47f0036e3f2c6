"""The loss of each row, with logits for the target tokens alone, is that of the whole logits."""

import pytest
import torch
from moe_models import make_moe
from tiny_models import make_classifier, make_model
from torch.nn import functional as F

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.encoding import IGNORED
from polyvera.data.target_tokens import TargetTokens
from polyvera.model.task import LABEL, LM, MULTI_LABEL, PREFERENCE, REGRESSION, TASKS, TOKEN_LABEL, WHOLE_ROW
from polyvera.train.checkpoint import trained
from polyvera.train.loss import is_plain_loss, num_items, row_losses

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


def test_a_plain_loss_is_that_of_transformers(batch):
    inputs, labels = batch
    model = make_model()
    assert is_plain_loss(model, inputs, labels)
    own = model(**inputs, labels=labels).loss
    targets = TargetTokens.of(labels)
    found = row_losses(model, inputs, targets).sum() / len(targets.labels)
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(x, [*model.parameters()]) for x in (found, own))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_a_router_asks_for_stays_in_the_loss(batch):
    inputs, labels = batch
    model = make_moe("mixtral")
    assert is_plain_loss(model, inputs, labels)
    model.config.output_router_logits = True
    assert not is_plain_loss(model, inputs, labels)


def test_a_class_is_one_target_a_row(batch):
    inputs, _ = batch
    model, labels = make_classifier(), torch.tensor([1, 0, 1])
    found = row_losses(model, inputs, TargetTokens.of(labels, WHOLE_ROW))
    torch.testing.assert_close(found, F.cross_entropy(model(**inputs).logits, labels, reduction="none"))


def test_heads_lose_as_torch_has_it(batch):
    inputs, _ = batch
    model = make_classifier()
    logits = model(**inputs).logits
    several = torch.tensor([[1, 0], [1, 1], [0, 0]])
    found = row_losses(model, inputs, TargetTokens.of(several, WHOLE_ROW), TASKS[MULTI_LABEL])
    torch.testing.assert_close(found.sum() / 6, F.binary_cross_entropy_with_logits(logits, several.float()))
    numbers = torch.tensor([0.5, -1.0, 2.0])
    found = row_losses(model, inputs, TargetTokens.of(numbers, WHOLE_ROW), TASKS[REGRESSION])
    torch.testing.assert_close(found.mean(), F.mse_loss(logits[:, 0], numbers))


@pytest.mark.parametrize(
    ("task", "row", "num"),
    [
        (LM, {"labels": [IGNORED, 5, 6]}, 2),
        (LM, {"labels": [5, IGNORED, 6]}, 1),  # the first token is predicted by none
        (LABEL, {"labels": 4}, 1),
        (REGRESSION, {"labels": 0.5}, 1),
        (MULTI_LABEL, {"labels": [0, 1, 0]}, 3),
        (TOKEN_LABEL, {"labels": [2, IGNORED, 0]}, 2),
        (PREFERENCE, {"labels": [IGNORED, 5, IGNORED, 6]}, 1),
    ],
)
def test_what_the_mean_counts(task, row, num):
    assert num_items(row, TASKS[task]) == num
