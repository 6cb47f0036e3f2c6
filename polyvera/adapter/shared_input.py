"""SharedInput: u = A x, computed once for the sibling layers that read the same x."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.adapter.equation import without_autocast
from polyvera.adapter.packed_linear import linear


class SharedInput:
    """u = A x, computed once for the sibling layers that read the same x (q, k, v; gate, up)."""

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Tensor], object, Tensor] | None = None
        self._takers: set[str] = set()

    def project(self, x: Tensor, A: Tensor, dropout: float, taker: str) -> Tensor:
        """x (..., in), A (rank, in) -> (..., rank), in A's dtype. taker: the layer, which takes each u once.

        A layer that comes again belongs to another forward, whose gradients are its own.
        """
        if torch.compiler.is_compiling():  # the compiler removes the repeated product itself
            return project_input(x, A, dropout)
        version = 0 if x.is_inference() else x._version
        # A checkpoint's recomputation must save what its forward saved, so it never takes the forward's u.
        task = torch._C._current_graph_task_id()
        state = (A.data_ptr(), A.dtype, torch.is_grad_enabled(), dropout, version, task)
        kept = self._kept
        if kept is not None and taker not in self._takers and kept[0]() is x and kept[1] == state:
            self._takers.add(taker)
            return kept[2]
        u = project_input(x, A, dropout)
        self._kept, self._takers = (weakref.ref(x, self._forget), state, u), {taker}
        return u

    def prepare(self, x: Tensor, A: Tensor, dropout: float) -> None:
        """Computes what project() gives to the first taker, before the takers come."""
        if self._kept is None or self._kept[0]() is not x:
            self.project(x, A, dropout, "")

    def _forget(self, ref: weakref.ref[Tensor]) -> None:
        if self._kept is not None and self._kept[0] is ref:
            self._kept = None

    def __deepcopy__(self, memo: object) -> SharedInput:
        return SharedInput()


def project_input(x: Tensor, A: Tensor, dropout: float) -> Tensor:
    """A x in A's dtype, where autocast has no say; dropout: of x."""
    x = x.to(A.dtype)
    with without_autocast(x):
        return linear(F.dropout(x, dropout) if dropout else x, A)
