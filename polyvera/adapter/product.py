"""linear: x Wᵀ, where W is frozen through a form that oneDNN likes better at few rows.

torch's own product of a few rows takes two to three times as long on a CPU. A packed matrix is a second copy of the
weight, and rounds otherwise, so it is used only `with packed(packs)`, which serving does and training does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN packs for a number of rows; what it packs for 16 is good from 1 to 256.
ROWS = 16
Key = tuple[int, torch.Size, tuple[int, ...]]


class Packs:
    """The packed copies of frozen matrices, each made at its first product."""

    def __init__(self) -> None:
        self._frozen: set[int] = set()
        self._packed: dict[Key, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def can(weight: Tensor) -> bool:
        """Whether this machine packs such a weight."""
        has = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        has = has and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        return bool(has and weight.device.type == "cpu" and weight.dtype == torch.float32)

    @property
    def num_bytes(self) -> int:
        """What the copies take."""
        return sum(weight.numel() * weight.element_size() for weight, _ in self._packed.values())

    def freeze(self, weight: Tensor) -> None:
        """Vouches that a matrix, and every slice of it, keeps its values."""
        if self.can(weight):
            self._frozen.add(weight.untyped_storage().data_ptr())

    def of(self, weight: Tensor) -> Tensor | None:
        """The packed form, None for a matrix that may change."""
        key = (weight.data_ptr(), weight.shape, weight.stride())
        known = self._packed.get(key)
        if known is None:
            if weight.untyped_storage().data_ptr() not in self._frozen:
                return None
            known = self._packed[key] = (weight, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS))
        return known[1]


_PACKS: ContextVar[Packs | None] = ContextVar("polyvera_packs", default=None)


@contextmanager
def packed(packs: Packs) -> Iterator[None]:
    """Products of frozen matrices inside go through their packed copies."""
    token = _PACKS.set(packs)
    try:
        yield
    finally:
        _PACKS.reset(token)


def is_packed() -> bool:
    """Whether results may be rounded otherwise here, for speed."""
    return _PACKS.get() is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in) -> (..., out)."""
    packs = _PACKS.get()
    form = None if packs is None or not x.numel() else packs.of(weight)
    if form is None:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, form, bias, "none", [], "")  # type: ignore[no-any-return]


class PackedModel:
    """The linear layers of a model answer through `linear` until undo()."""

    def __init__(self, model: nn.Module, packs: Packs) -> None:
        self._layers = [m for m in model.modules() if type(m) is nn.Linear and packs.can(m.weight)]
        for layer in self._layers:
            packs.freeze(layer.weight)
            layer.forward = _Forward(layer)  # type: ignore[method-assign,assignment]

    def undo(self) -> None:
        """Gives the layers their own forward back."""
        for layer in self._layers:
            del layer.forward


class _Forward:
    def __init__(self, layer: nn.Linear) -> None:
        self._weight, self._bias = layer.weight, layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)
