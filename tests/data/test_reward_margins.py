import torch
from tiny_models import make_model
from torch.nn import functional as F

from polyvera.adapter.inject import inject
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.batching import Collator
from polyvera.data.encoding import IGNORED
from polyvera.data.reward_margins import BETA, log_likelihoods, reward_margins
from polyvera.data.target_tokens import TargetTokens

ROWS = [
    {"input_ids": [7, 8, 9, 1, 7, 8, 20, 21, 1], "labels": [IGNORED, 8, 9, 1, IGNORED, 8, 20, 21, 1], "parts": [4, 5]},
    {"input_ids": [9, 5, 1, 9, 6, 1], "labels": [IGNORED, 5, 1, IGNORED, 6, 1], "parts": [3, 3]},
]


def naive(model: torch.nn.Module, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The log likelihood of a sequence's own targets, token by token."""
    logits = model(torch.tensor([ids])).logits[0]
    found = [F.log_softmax(logits[i - 1], -1)[ids[i]] for i in range(1, len(ids)) if labels[i] != IGNORED]
    return torch.stack(found).sum()


def test_margins_and_gradients_are_those_of_each_sequence_alone() -> None:
    model = make_model()
    bank = inject(model, AdapterSpec(rank=4, targets="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = Collator(1)(ROWS)
    targets = TargetTokens.of(batch.pop("labels"))
    with route(bank.first):
        margins = reward_margins(model, batch, targets)
        assert log_likelihoods(model, batch, targets).shape == (4,)
    gradients = torch.autograd.grad(margins.sum(), trained)
    expected = []
    for row in ROWS:
        n, parts = row["parts"][0], []
        for place in (slice(None, n), slice(n, None)):
            ids, labels = row["input_ids"][place], row["labels"][place]
            with route(bank.first):
                own = naive(model, ids, labels)
            with route(0), torch.no_grad():
                base = naive(model, ids, labels)
            parts.append(own - base)
        expected.append(BETA * (parts[0] - parts[1]))
    torch.testing.assert_close(margins, torch.stack(expected), atol=1e-5, rtol=1e-4)
    for own, other in zip(gradients, torch.autograd.grad(sum(expected), trained), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-3)


def test_an_adapter_that_does_nothing_prefers_nothing() -> None:
    model = make_model()
    bank = inject(model, AdapterSpec(rank=4))
    batch = Collator(1)(ROWS)
    targets = TargetTokens.of(batch.pop("labels"))
    with route(bank.first):
        torch.testing.assert_close(reward_margins(model, batch, targets), torch.zeros(2), atol=1e-5, rtol=0)
