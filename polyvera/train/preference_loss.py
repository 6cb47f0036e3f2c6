"""COMPARISONS: what each row loses by how a model likes the rejected one of two answers to one prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.data.reward_margins import log_likelihoods, reward_margins
from polyvera.data.target_tokens import TargetTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ODDS_WEIGHT = 0.1  # of the odds ratio beside the likelihood of the chosen answer (ORPO, Hong 2024, section 6)
LARGEST = -1e-6  # mean log-likelihood; of 0 the odds would be infinite


def _dpo(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """Direct preference optimization (Rafailov 2023, equation 7)."""
    return -F.logsigmoid(reward_margins(model, inputs, targets))


def _orpo(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """Odds ratio preference optimization, without a reference (Hong 2024, equations 4 to 7)."""
    summed = log_likelihoods(model, inputs, targets)
    means = summed / targets.summed(torch.ones_like(targets.rows, dtype=summed.dtype), len(summed))
    log_odds = means - torch.log(-torch.expm1(means.clamp(max=LARGEST)))
    chosen, rejected = log_odds.chunk(2)
    return -means.chunk(2)[0] - ODDS_WEIGHT * F.logsigmoid(chosen - rejected)


# Of 2 x rows sequences, the chosen answers first, as target_logits() takes them -> (rows,), in nats.
COMPARISONS: Mapping[str, Callable[[PreTrainedModel, Mapping[str, Tensor], TargetTokens], Tensor]] = MappingProxyType(
    {"dpo": _dpo, "orpo": _orpo}
)
