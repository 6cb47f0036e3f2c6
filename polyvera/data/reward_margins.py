"""reward_margins: how much more an adapter likes the chosen answer than the rejected one, against the bare base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyvera.adapter.route import route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.data.target_logprobs import target_logprobs
from polyvera.data.target_tokens import TargetTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BETA = 0.1  # how far the likelihood of an answer may leave the base's (DPO, Rafailov 2023, section 6)


def reward_margins(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """β (log π/π₀ of the chosen answer - that of the rejected one), (rows,), π₀ being slot 0 of the same model.

    inputs, targets: of 2 x rows sequences, the chosen answers first, as target_logits() takes them (DPO, Rafailov 2023,
    equation 7).
    """
    own = log_likelihoods(model, inputs, targets)
    with torch.no_grad(), route(BASE_SLOT):
        base = log_likelihoods(model, inputs, targets)
    chosen, rejected = (own - base).chunk(2)
    return BETA * (chosen - rejected)


def log_likelihoods(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """The log probability of each sequence's target tokens, (sequences,), in nats."""
    return targets.summed(target_logprobs(model, inputs, targets), len(inputs["input_ids"]))
