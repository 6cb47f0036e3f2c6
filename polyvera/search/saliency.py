"""saliencies: how much the loss of the bare base model asks each layer to change, by one gradient pass.

The gradient of a mean loss by a layer's W is GᵀX, with what the layer reads X (T, I) and the gradient of its output
G (T, O). Its squared norm is the sum of XXᵀ ⊙ GGᵀ, so no (O, I) is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.adapter.targets import linear_layers
from polyvera.data.batching import Collator
from polyvera.data.target_tokens import TargetTokens
from polyvera.model.config import pad_token
from polyvera.model.load import Base
from polyvera.model.task import Task
from polyvera.train.loss import row_losses

MAX_ROWS, TOGETHER = 64, 4


def saliencies(base: Base, rows: Sequence[Mapping[str, Any]], task: Task, names: Sequence[str]) -> dict[str, float]:
    """The squared norm of the gradient of a few rows' loss by each of these layers' weights, as a share of all.

    base: bare. rows: in tokens; the first MAX_ROWS of them are looked at, TOGETHER at a time.
    """
    found = dict.fromkeys(names, 0.0)
    collate = Collator(pad_token(base.model, base.tokenizer))
    with _observed(base.model, names, found), torch.enable_grad():
        for first in range(0, min(MAX_ROWS, len(rows)), TOGETHER):
            batch = collate(rows[first : first + TOGETHER])
            targets = TargetTokens.of(batch.pop("labels"), task.predicts).to(base.model.device)
            inputs = {name: tensor.to(base.model.device) for name, tensor in batch.items()}
            row_losses(base.model, inputs, targets, task).mean().backward()  # type: ignore[no-untyped-call]
    total = sum(found.values())
    return {name: energy / total if total else 1 / len(found) for name, energy in found.items()}


@contextmanager
def _observed(model: nn.Module, names: Sequence[str], found: dict[str, float]) -> Iterator[None]:
    """Adds to found what each backward pass shows; no parameter keeps a gradient, and the mode is as before."""
    layers = linear_layers(model)
    hooks = [layers[name].register_forward_hook(_observer(name, found)) for name in names]
    wants = [(p, p.requires_grad) for p in model.parameters()]
    was_training = model.training
    model.train(False).requires_grad_(False)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
        model.train(was_training)


def _observer(name: str, found: dict[str, float]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def observe(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        read = given[0].detach().float().flatten(0, -2)

        def take(gradient: Tensor) -> None:
            wanted = gradient.float().flatten(0, -2)
            found[name] += float(((read @ read.T) * (wanted @ wanted.T)).sum())

        marked: Tensor = out + torch.zeros_like(out, requires_grad=True)
        marked.register_hook(take)
        return marked

    return observe
