"""target_logits: what a model puts at the tokens that a batch is to predict, and at no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.layer import AdaptedLinear
from polyvera.adapter.pinned_memory import to_device
from polyvera.data.encoding import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TargetTokens:
    """What a batch is to predict: its target tokens, or one class a row.

    labels: (targets,). rows: the row of each. positions: where each is predicted in the batch's tokens end to end, None
    for classes.
    """

    labels: Tensor
    rows: Tensor
    positions: Tensor | None

    @classmethod
    def of(cls, labels: Tensor) -> TargetTokens:
        """labels: a Collator's. On the CPU: a GPU would have to stop and say how many it has found."""
        if labels.dim() == 1:
            return cls(labels, torch.arange(len(labels)), None)
        rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return cls(labels[rows, places + 1], rows, rows * labels.shape[1] + places)

    def to(self, device: torch.device) -> TargetTokens:
        """The same on a device."""
        positions = None if self.positions is None else to_device(self.positions, device)
        return TargetTokens(to_device(self.labels, device), to_device(self.rows, device), positions)

    def summed(self, values: Tensor, num_rows: int) -> Tensor:
        """(targets,) -> (num_rows,), the sum over each row's targets."""
        return values.new_zeros(num_rows).index_add(0, self.rows, values)


def target_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """(targets, vocabulary), or (rows, classes), in fp32.

    inputs: a Collator's batch without its labels, on the model's device like the targets.
    """
    call: Any = model
    if targets.positions is None:
        return call(**inputs).logits.float()  # type: ignore[no-any-return]
    with _only(model, targets.positions):
        logits: Tensor = call(**inputs, use_cache=False).logits
    return (logits if logits.dim() == 2 else _chosen(logits, targets.positions)).float()


def _chosen(tokens: Tensor, positions: Tensor) -> Tensor:
    """(rows, T, features) -> (positions, features)."""
    return tokens.flatten(0, 1).index_select(0, positions)


@contextmanager
def _only(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Lets the output layer see only the positions before a target token, flat: (rows, T, hidden) -> (targets, hidden).

    The output layer is a fifth of a small model's work, and most tokens of a prompt are only read.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or isinstance(head, AdaptedLinear):  # an adapted one wants to see whole rows
        yield
        return

    def chosen(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_chosen(given[0], positions), *given[1:])

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
