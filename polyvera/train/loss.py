"""row_losses: the summed loss of each row of a batch, with logits for what is predicted alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.data.encoding import IGNORED
from polyvera.data.target_logprobs import target_logprobs
from polyvera.data.target_tokens import TargetTokens, target_logits
from polyvera.data.text_vectors import text_vectors
from polyvera.model.inference import evaluating
from polyvera.model.task import LM, NEXT_TOKEN, TASKS, WHOLE_ROW, Task
from polyvera.train.preference_loss import COMPARISONS
from polyvera.train.vector_loss import VECTOR_LOSSES, of_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Inputs = Mapping[str, Tensor]


def _cross_entropy(model: PreTrainedModel, inputs: Inputs, targets: TargetTokens) -> Tensor:
    return -target_logprobs(model, inputs, targets)


def _binary_cross_entropy(model: PreTrainedModel, inputs: Inputs, targets: TargetTokens) -> Tensor:
    logits, labels = target_logits(model, inputs, targets), targets.labels.float()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)


def _squared_error(model: PreTrainedModel, inputs: Inputs, targets: TargetTokens) -> Tensor:
    return (target_logits(model, inputs, targets)[:, 0] - targets.labels.float()) ** 2


# By how much a product of fewer rows may round otherwise.
LOSS_RTOL = {torch.float32: 1e-5, torch.float64: 1e-5}
LOW_LOSS_RTOL = 1e-2
# Of a batch, as target_logits() takes it -> (targets,), in nats, or squared units of the numbers.
LOSSES: Mapping[str, Callable[[PreTrainedModel, Inputs, TargetTokens], Tensor]] = MappingProxyType(
    {
        "cross_entropy": _cross_entropy,
        "binary_cross_entropy": _binary_cross_entropy,
        "squared_error": _squared_error,
    }
)


def row_losses(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    targets: TargetTokens,
    task: Task = TASKS[LM],
    groups: Tensor | None = None,
) -> Tensor:
    """The loss of each row, summed over what it predicts, in nats; (rows,).

    inputs, targets: as target_logits() takes them. groups: which rows of texts are compared with each other, (rows,)
    numbers, None for all.
    """
    if task.embeds:
        vectors = text_vectors(model, inputs)
        vectors = vectors.view(-1, len(vectors) if groups is None else len(groups), vectors.shape[-1])
        return of_groups(VECTOR_LOSSES[task.loss], vectors, targets.labels[: vectors.shape[1]], groups)
    if task.compares:
        return COMPARISONS[task.compares](model, inputs, targets)
    losses = LOSSES[task.loss](model, inputs, targets)
    return losses if targets.positions is None else targets.summed(losses, len(inputs["input_ids"]))


def is_plain_loss(model: PreTrainedModel, inputs: Mapping[str, Tensor], labels: Tensor) -> bool:
    """Whether a language model's own loss is the mean of row_losses(), so that logits of target tokens are enough.

    It is looked at for one batch, on the model's device: others add what their routers ask for, or count otherwise.
    """
    call: Any = model
    with evaluating(model):
        found = call(**inputs, labels=labels)
        if getattr(found, "aux_loss", None) is not None:
            return False
        targets = TargetTokens.of(labels.cpu()).to(labels.device)
        own = row_losses(model, inputs, targets).sum() / targets.labels.numel()
    return bool(torch.allclose(found.loss.float(), own, rtol=LOSS_RTOL.get(model.dtype, LOW_LOSS_RTOL), atol=1e-6))


def num_items(row: Mapping[str, Any], task: Task) -> int:
    """What the mean loss counts: a row's target tokens, the outputs of a whole row, or 1 for several sequences."""
    labels = row["labels"]
    if task.counts_rows or not isinstance(labels, list):
        return 1
    if task.predicts == WHOLE_ROW:
        return len(labels)
    shift = 1 if task.predicts == NEXT_TOKEN else 0
    return sum(label != IGNORED for label in labels[shift:])
