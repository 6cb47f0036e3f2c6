"""target_logprobs: the log-probabilities of a batch's target tokens, whose logits are made piece by piece and not kept.

The logits of t targets over a vocabulary of V, their softmax and its gradient are t x V numbers each, most of what
training a small model moves. Here the gradient by the last hidden state is made while a piece's logits are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from polyvera.data.target_tokens import TargetTokens, raw_logits, target_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIECE_BYTES = 1 << 26  # of fp32 logits
MIN_PIECE = 128  # targets
_gives_logits_as_made: MutableMapping[Any, bool] = WeakIdKeyDictionary()


def target_logprobs(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """The log-probability of each target, (targets,), fp32, in nats; plain_logprobs() up to rounding.

    inputs, targets: as target_logits() takes them. A head's, and a seq2seq decoder's, are made all at once.
    """
    bare: Any = getattr(model, "module", model)  # of what spreads a batch over processes
    head = bare.get_output_embeddings() if targets.is_next else None
    if not _is_plain(head) or not _gives_logits_as_made.get(bare, True):
        return plain_logprobs(model, inputs, targets)
    made: list[tuple[Tensor, Tensor]] = []
    with _replaced(head, targets.labels, made):
        given = raw_logits(model, inputs, targets)
    # A model that scales or caps its logits shows it at the first batch, whose forward is then done again.
    _gives_logits_as_made[bare] = len(made) == 1 and given is made[0][0]
    return made[0][1] if _gives_logits_as_made[bare] else plain_logprobs(model, inputs, targets)


def plain_logprobs(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """The same from all logits at once."""
    return -F.cross_entropy(target_logits(model, inputs, targets), targets.labels, reduction="none")


def _is_plain(head: Any) -> TypeGuard[nn.Linear]:
    """Whether an output layer is one frozen matrix, run as it is."""
    return (
        type(head) is nn.Linear
        and type(head.weight.detach()) is Tensor
        and "forward" not in vars(head)
        and not any(parameter.requires_grad for parameter in head.parameters())
    )


@contextmanager
def _replaced(head: nn.Linear, labels: Tensor, made: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Lets an output layer give logits without memory, and puts them beside the log-probabilities of the labels."""

    def forward(hidden: Tensor) -> Tensor:
        logits = hidden.new_zeros(()).expand(*hidden.shape[:-1], head.out_features)
        if len(hidden) == len(labels):
            made.append((logits, _LinearLogprobs.apply(hidden, head.weight, head.bias, labels)))  # type: ignore[no-untyped-call]
        return logits

    vars(head)["forward"] = forward
    try:
        yield
    finally:
        del vars(head)["forward"]


class _LinearLogprobs(torch.autograd.Function):
    """log softmax(hidden Wᵀ + bias) at the labels, differentiable by hidden alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """hidden (t, features), weight (V, features), bias (V,), labels (t,) -> (t,)."""
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        found = torch.empty(len(hidden), device=hidden.device)
        size = max(MIN_PIECE, PIECE_BYTES // (4 * len(weight)))
        for at in range(0, len(hidden), size):
            piece = slice(at, at + size)
            found[piece], logits = _of_piece(F.linear(hidden[piece], weight, bias).float(), labels[piece])
            if slope is not None:
                slope[piece] = logits.to(weight.dtype) @ weight
        if slope is not None:
            ctx.save_for_backward(slope)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """upstream (t,)."""
        (slope,) = ctx.saved_tensors
        return upstream[:, None].to(slope.dtype) * slope, None, None, None


def _of_piece(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (t, V), in whose place the slopes are written: the log-probabilities (t,), and those slopes."""
    own, top = logits.gather(1, labels[:, None]), logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    slopes = logits.mul_(-1.0 / total).scatter_add_(1, labels[:, None], torch.ones_like(own))
    return (own - top - total.log())[:, 0], slopes
