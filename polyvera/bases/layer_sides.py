"""LayerSides: what adapted layers read and what the loss asks of them, gathered while a fleet trains.

For tokens with inputs x (in,) and gradients g (out,) of a layer's output, the sums of x, x xᵀ, g gᵀ and g xᵀ; the last
is the gradient of the loss by the layer's weight. Tokens that no loss depends on, such as padding, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.adapter.base_layer import layer_kind
from polyvera.adapter.targets import base_layers
from polyvera.errors import DataError
from polyvera.model.layer_gradients import Hook

SMALLEST = 1e-6  # of the largest direction: what is less is rounding


@dataclass
class LayerSides:
    """The sums of one layer. inputs (in, in), total (in,), outputs (out, out), weight (out, in), over num tokens."""

    inputs: Tensor
    total: Tensor
    outputs: Tensor
    weight: Tensor
    num: int = 0

    def add(self, x: Tensor, g: Tensor) -> None:
        """Takes in tokens (n, in) and (n, out)."""
        used = g.abs().amax(1) > 0
        x, g = x[used].double(), g[used].double()  # a covariance is a difference of large sums
        self.inputs += x.T @ x
        self.total += x.sum(0)
        self.outputs += g.T @ g
        self.weight += g.T @ x
        self.num += len(x)

    @property
    def covariance(self) -> Tensor:
        """Of the inputs, (in, in), of trace 1."""
        mean = self.total / max(self.num, 1)
        return _of_trace_one(self.inputs / max(self.num, 1) - torch.outer(mean, mean))

    @property
    def wanted(self) -> Tensor:
        """The second moments of the gradients of the outputs, (out, out), of trace 1."""
        return _of_trace_one(self.outputs)


def _of_trace_one(moments: Tensor) -> Tensor:
    trace = moments.trace()
    return moments / trace if trace > 0 else moments


@contextmanager
def gathering(model: nn.Module, widths: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, LayerSides]]:
    """The sides of the layers of these widths, which grow with each backward pass of a training inside.

    The model's answers are as they were. Raises DataError for stacks of experts.
    """
    stack = next((name for name, own in widths.items() if len(own) > 2), None)
    if stack is not None:
        raise DataError(f"{stack} is a stack of experts, of which no sides are gathered: leave it out with exclude")
    found = {name: _empty(own[0], own[1], next(model.parameters()).device) for name, own in widths.items()}
    layers = base_layers(model)
    modules = {name: layer_kind(layers[name]).module(layers[name]) for name in found}
    handles = [modules[name].register_forward_hook(_observer(sides, model)) for name, sides in found.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _empty(wide: int, tall: int, device: torch.device) -> LayerSides:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device, dtype=torch.float64)

    return LayerSides(zeros(wide, wide), zeros(wide), zeros(tall, tall), zeros(tall, wide))


def _observer(sides: LayerSides, model: nn.Module) -> Hook:
    def observe(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        if not (model.training and torch.is_grad_enabled()):
            return out
        x = given[0].detach().flatten(0, -2)
        marked: Tensor = out + torch.zeros_like(out, requires_grad=True)
        marked.register_hook(lambda g: sides.add(x, g.detach().flatten(0, -2)))  # type: ignore[no-untyped-call]
        return marked

    return observe


def leading(moments: Sequence[Tensor], rank: int, what: str) -> Tensor:
    """The leading eigenvectors (rank, widest) of the sum of moments, each beside zeros where it is narrower.

    Raises DataError where they span fewer directions. what: they are of, for the message.
    """
    width = max(len(own) for own in moments)
    pooled = torch.zeros(width, width, dtype=torch.float64)
    for own in moments:
        pooled[: len(own), : len(own)] += own.cpu()
    values, vectors = torch.linalg.eigh(pooled)
    check_rank(rank, int((values > SMALLEST * values[-1]).sum()), what)
    found: Tensor = vectors.flip(1)[:, :rank].T
    return found


def leading_pairs(sides: Sequence[LayerSides], rank: int) -> tuple[Tensor, Tensor]:
    """Right (rank, widest in) and left (rank, widest out) singular vectors of the layers' mean gradients.

    Of all layers' pairs those of the largest singular values, each over the norm of its layer's gradient.
    """
    wide, tall = (max(own.weight.shape[axis] for own in sides) for axis in (1, 0))
    pairs: list[tuple[float, Tensor, Tensor]] = []
    for own in sides:
        U, values, V = torch.linalg.svd(own.weight.cpu(), full_matrices=False)
        norm = torch.linalg.vector_norm(values).clamp(min=1e-300)
        shares = (values / norm)[:rank].tolist()
        pairs += [(share, V[i], U[:, i]) for i, share in enumerate(shares) if share > SMALLEST]
    check_rank(rank, len(pairs), "the gradients of these layers")
    best = sorted(pairs, key=lambda pair: -pair[0])[:rank]
    right, left = torch.zeros(rank, wide).double(), torch.zeros(rank, tall).double()
    for i, (_, v, u) in enumerate(best):
        right[i, : len(v)], left[i, : len(u)] = v, u
    return right, left


def check_rank(rank: int, num: int, what: str) -> None:
    """Raises DataError for more directions than there are."""
    if rank > num:
        raise DataError(f"rank={rank}, but {what} span {num} directions: take a lower rank, or more rows and layers")
