"""row_losses: the summed loss of each row of a batch, with logits for the target tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from polyvera.data.target_tokens import TargetTokens, target_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def row_losses(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """Cross entropy of each row, summed over its target tokens (its class), in nats; (rows,).

    inputs, targets: as target_logits() takes them.
    """
    losses = F.cross_entropy(target_logits(model, inputs, targets), targets.labels, reduction="none")
    return losses if targets.positions is None else targets.summed(losses, len(inputs["input_ids"]))
