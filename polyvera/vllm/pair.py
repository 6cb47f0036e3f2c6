"""SharedPair: the one frozen A and B of a process, as the pieces that its layers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from polyvera.adapter.basis import Basis
from polyvera.errors import BasisError
from polyvera.vllm.settings import RANK

# Up to so many rows, torch's product of a CPU is two to three times as fast the other way round.
FEW = 64


class Product(Protocol):
    """x (rows, in) -> x Wᵀ (rows, out) for one frozen W (out, in)."""

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""

    def refill(self) -> None:
        """Says that W holds other numbers now."""


@dataclass(frozen=True, eq=False)
class Plain:
    """The product in torch's own operations."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        if self.weight.device.type == "cpu" and x.shape[0] <= FEW:
            return (self.weight @ x.t()).t()
        return x @ self.weight.t()

    def refill(self) -> None:
        """Nothing is kept of W."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Lines of A or B that layers multiply with: `weight` (out, in), zeros until the pair is known."""

    index: Tensor
    weight: Tensor
    product: Product

    def fill(self, whole: Tensor, axis: int) -> None:
        """Copies whole's lines `index` of an axis into the first corner; lines that whole lacks stay zero."""
        there, weight = self.index < whole.shape[axis], self.weight
        lines = whole.index_select(axis, self.index[there]).to(weight.device, weight.dtype)
        at = there.nonzero()[:, 0].to(weight.device)
        if axis == 1:
            weight[: lines.shape[0], at] = lines
        else:
            weight[at, : lines.shape[1]] = lines
        self.product.refill()


@dataclass(eq=False)
class SharedPair:
    """Pieces of A and B for layers to hold before the first adapter says which pair it is; zeros until then.

    rank: the most that a pair may have; a pair of fewer leaves zeros. multiply: how a piece is multiplied with. The
    tensors stay the same ones when they are filled, so a captured CUDA graph sees the numbers.
    """

    rank: int
    dtype: torch.dtype
    device: torch.device
    basis: Basis | None = None
    multiply: Callable[[Tensor], Product] = Plain
    _columns: dict[bytes, Piece] = field(default_factory=dict, repr=False)
    _rows: dict[bytes, Piece] = field(default_factory=dict, repr=False)

    def columns(self, index: Tensor) -> Piece:
        """A[:, index], (rank, len(index)); one piece for all layers that ask for the same."""
        return self._piece(self._columns, index, (self.rank, len(index)))

    def rows(self, index: Tensor) -> Piece:
        """B[index], (len(index), rank); one piece for all layers that ask for the same."""
        return self._piece(self._rows, index, (len(index), self.rank))

    @property
    def num_bytes(self) -> int:
        """What the pieces take."""
        pieces = (*self._columns.values(), *self._rows.values())
        return sum(piece.weight.nbytes for piece in pieces)

    def bind(self, basis: Basis) -> None:
        """Makes this the pair of the process. Raises BasisError where another one is, or where the rank is too high."""
        if self.basis is not None:
            return self._check(basis)
        if basis.key.rank > self.rank:
            raise BasisError(
                f"the adapter has rank {basis.key.rank} and this engine serves up to {self.rank}: start it with "
                f"{RANK}={basis.key.rank}"
            )
        for piece in self._columns.values():
            piece.fill(basis.A, 1)
        for piece in self._rows.values():
            piece.fill(basis.B, 0)
        self.basis = basis
        return None

    def _check(self, basis: Basis) -> None:
        if self.basis is not None and basis.sha256 != self.basis.sha256:
            raise BasisError(
                f"the adapter's frozen pair is {basis.key} with sha256 {basis.sha256[:12]}, and this engine's adapters "
                f"share {self.basis.key} with sha256 {self.basis.sha256[:12]}: serve it from an engine of its own, or "
                "train it on the same pair (in_max and out_max of the spec set the widths)"
            )

    def _piece(self, pieces: dict[bytes, Piece], index: Tensor, shape: tuple[int, int]) -> Piece:
        key = index.cpu().numpy().tobytes()
        if key not in pieces:
            weight = torch.zeros(shape, dtype=self.dtype, device=self.device)
            pieces[key] = Piece(index.cpu(), weight, self.multiply(weight))
        return pieces[key]
