"""What the rows of two answers lose, against the papers' formulas token by token."""

import pytest
import torch
from tiny_models import make_model

from polyvera.adapter.inject import inject
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.batching import Collator
from polyvera.data.encoding import IGNORED
from polyvera.data.target_tokens import TargetTokens
from polyvera.train.preference_loss import COMPARISONS, ODDS_WEIGHT

PROMPT, ANSWERS = [8, 9], ([[10, 11, 1], [12, 1]], [[13, 1], [14, 15, 16, 1]])  # of two rows: chosen, rejected
ROWS = [
    {
        "input_ids": [*PROMPT, *chosen, *PROMPT, *rejected],
        "labels": [IGNORED, IGNORED, *chosen, IGNORED, IGNORED, *rejected],
        "parts": [2 + len(chosen), 2 + len(rejected)],
    }
    for chosen, rejected in ANSWERS
]


def log_probability(model: torch.nn.Module, answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*PROMPT, *answer]])
    found = model(input_ids=ids).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1]
    return found.gather(1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("name", COMPARISONS)
def test_losses_are_those_of_the_papers(name: str) -> None:
    model = make_model()
    bank = inject(model, AdapterSpec("lora", 4, "all-linear"))
    bank.flat.data.add_(0.1 * torch.randn(bank.flat.shape, generator=torch.Generator().manual_seed(0)))
    batch = Collator(1)(ROWS)
    targets = TargetTokens.of(batch.pop("labels"))
    with torch.no_grad(), route(bank.first):
        losses = COMPARISONS[name](model, batch, targets)
        own = [[log_probability(model, answer) for answer in pair] for pair in ANSWERS]
    with torch.no_grad(), route(0):
        base = [[log_probability(model, answer) for answer in pair] for pair in ANSWERS]
    for i, pair in enumerate(ANSWERS):
        if name == "dpo":
            margin = 0.1 * ((own[i][0] - base[i][0]) - (own[i][1] - base[i][1]))
            expected = -torch.nn.functional.logsigmoid(margin)
        else:
            p, q = ((total / len(answer)).exp() for total, answer in zip(own[i], pair, strict=True))
            ratio = (p / (1 - p)) / (q / (1 - q))
            expected = -p.log() - ODDS_WEIGHT * torch.sigmoid(ratio.log()).log()
        torch.testing.assert_close(losses[i], expected, atol=1e-5, rtol=1e-5)
