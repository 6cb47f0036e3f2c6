"""row_losses: the summed loss of each row of a batch, with logits for the target tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from polyvera.adapter.layer import AdaptedLinear
from polyvera.data.encoding import IGNORED


def row_losses(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Cross entropy of each row, summed over its target tokens (its class), in nats. A Collator's batch -> (rows,)."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    call: Any = model
    if labels.dim() == 1:
        return F.cross_entropy(call(**inputs).logits.float(), labels, reduction="none")
    wanted = labels[:, 1:]
    is_target = wanted != IGNORED
    with _only(model, is_target):
        logits: Tensor = call(**inputs, use_cache=False).logits
    logits = logits if logits.dim() == 2 else logits[:, :-1][is_target]
    losses = F.cross_entropy(logits.float(), wanted[is_target], reduction="none")
    return losses.new_zeros(len(labels)).index_add(0, is_target.nonzero()[:, 0], losses)


@contextmanager
def _only(model: PreTrainedModel, is_target: Tensor) -> Iterator[None]:
    """Lets the output layer see only the positions before a target token, flat: (rows, T, hidden) -> (targets, hidden).

    The output layer is a fifth of a small model's work, and most tokens of a prompt are only read.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or isinstance(head, AdaptedLinear):  # an adapted one wants to see whole rows
        yield
        return

    def chosen(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][:, :-1][is_target], *given[1:])

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
