"""saliencies: how much the loss of the bare base model asks each layer to change, by one gradient pass.

The gradient of a mean loss by a layer's W is GᵀX, with what the layer reads X (T, I) and the gradient of its output
G (T, O). Its squared norm is the sum of XXᵀ ⊙ GGᵀ, so no (O, I) is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.data.batching import Collator
from polyvera.data.target_tokens import TargetTokens
from polyvera.model.layer_gradients import Hook, hooked
from polyvera.model.load import Base
from polyvera.model.task import Task
from polyvera.train.loss import row_losses

MAX_ROWS, TOGETHER = 64, 4


def saliencies(base: Base, rows: Sequence[Mapping[str, Any]], task: Task, names: Sequence[str]) -> dict[str, float]:
    """The squared norm of the gradient of a few rows' loss by each of these layers' weights, as a share of all.

    base: bare. rows: in tokens; the first MAX_ROWS of them are looked at, TOGETHER at a time.
    """
    found = dict.fromkeys(names, 0.0)
    collate = Collator.of(base.model, base.tokenizer)
    with hooked(base.model, {name: _observer(name, found) for name in names}), torch.enable_grad():
        for first in range(0, min(MAX_ROWS, len(rows)), TOGETHER):
            batch = collate(rows[first : first + TOGETHER])
            targets = TargetTokens.of(batch.pop("labels"), task.predicts).to(base.model.device)
            inputs = {name: tensor.to(base.model.device) for name, tensor in batch.items()}
            row_losses(base.model, inputs, targets, task).mean().backward()  # type: ignore[no-untyped-call]
    total = sum(found.values())
    return {name: energy / total if total else 1 / len(found) for name, energy in found.items()}


def _observer(name: str, found: dict[str, float]) -> Hook:
    def observe(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        read = given[0].detach().float().flatten(0, -2)

        def take(gradient: Tensor) -> None:
            wanted = gradient.float().flatten(0, -2)
            found[name] += float(((read @ read.T) * (wanted @ wanted.T)).sum())

        marked: Tensor = out + torch.zeros_like(out, requires_grad=True)
        marked.register_hook(take)  # type: ignore[no-untyped-call]
        return marked

    return observe
