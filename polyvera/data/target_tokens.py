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
from polyvera.model.task import NEXT_TOKEN, WHOLE_ROW

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TargetTokens:
    """What a batch is to predict: its target tokens, or something of each whole row.

    labels: (targets,), or (targets, outputs) for several of each row. rows: the row of each. positions: where each is
    predicted in the batch's tokens end to end, None for whole rows. is_next: whether each is the token after that.
    """

    labels: Tensor
    rows: Tensor
    positions: Tensor | None
    is_next: bool = True

    @classmethod
    def of(cls, labels: Tensor, predicts: str = NEXT_TOKEN) -> TargetTokens:
        """labels: a Collator's. On the CPU: a GPU would have to stop and say how many it has found."""
        if predicts == WHOLE_ROW:
            return cls(labels, torch.arange(len(labels)), None, False)
        shift = int(predicts == NEXT_TOKEN)
        rows, places = (labels[:, shift:] != IGNORED).nonzero(as_tuple=True)
        return cls(labels[rows, places + shift], rows, rows * labels.shape[1] + places, bool(shift))

    def to(self, device: torch.device) -> TargetTokens:
        """The same on a device."""
        positions = None if self.positions is None else to_device(self.positions, device)
        return TargetTokens(to_device(self.labels, device), to_device(self.rows, device), positions, self.is_next)

    def summed(self, values: Tensor, num_rows: int) -> Tensor:
        """(targets,) -> (num_rows,), the sum over each row's targets."""
        return values.new_zeros(num_rows).index_add(0, self.rows, values)


def target_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """(targets, vocabulary) or (targets, outputs of a head), in fp32.

    inputs: a Collator's batch without its labels, on the model's device like the targets.
    """
    return raw_logits(model, inputs, targets).float()


def raw_logits(model: PreTrainedModel, inputs: Mapping[str, Tensor], targets: TargetTokens) -> Tensor:
    """The same in the model's dtype, and as it made them where its output layer sees targets alone."""
    call: Any = model
    if targets.positions is None:
        return call(**inputs).logits  # type: ignore[no-any-return]
    if not targets.is_next:
        return _chosen(call(**inputs).logits, targets.positions)
    with _only(model, targets.positions):
        logits: Tensor = call(**inputs, use_cache=False).logits
    return logits if logits.dim() == 2 else _chosen(logits, targets.positions)


def _chosen(tokens: Tensor, positions: Tensor) -> Tensor:
    """(rows, T, features) -> (positions, features)."""
    return tokens.flatten(0, 1).index_select(0, positions)


@contextmanager
def _only(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Lets the output layer see only the positions before a target token, flat: (rows, T, hidden) -> (targets, hidden).

    The output layer is a fifth of a small model's work, and most tokens of a prompt are only read.
    """
    bare: Any = getattr(model, "module", model)  # of what spreads a batch over processes
    head: nn.Module | None = bare.get_output_embeddings()
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
