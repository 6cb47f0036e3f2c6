"""SharedPair: the one frozen A and B of a process, as the pieces that its layers use."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyvera.adapter.basis import Basis
from polyvera.errors import BasisError
from polyvera.vllm.settings import RANK

# Up to so many rows, torch's product of a CPU is two to three times as fast the other way round.
FEW = 64


@dataclass(eq=False)
class SharedPair:
    """Pieces of A and B for layers to hold before the first adapter says which pair it is; zeros until then.

    rank: the most that a pair may have; a pair of fewer leaves zeros. The tensors stay the same ones when they are
    filled, so a captured CUDA graph sees the numbers.
    """

    rank: int
    dtype: torch.dtype
    device: torch.device
    basis: Basis | None = None
    _columns: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _rows: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def columns(self, index: Tensor) -> Tensor:
        """A[:, index], (rank, len(index)); one tensor for all layers that ask for the same."""
        return self._piece(self._columns, index, (self.rank, len(index)))

    def rows(self, index: Tensor) -> Tensor:
        """B[index], (len(index), rank); one tensor for all layers that ask for the same."""
        return self._piece(self._rows, index, (len(index), self.rank))

    @property
    def num_bytes(self) -> int:
        """What the pieces take."""
        pieces = (*self._columns.values(), *self._rows.values())
        return sum(piece.numel() * piece.element_size() for _, piece in pieces)

    def bind(self, basis: Basis) -> None:
        """Makes this the pair of the process. Raises BasisError where another one is, or where the rank is too high."""
        if self.basis is not None:
            return self._check(basis)
        if basis.key.rank > self.rank:
            raise BasisError(
                f"the adapter has rank {basis.key.rank} and this engine serves up to {self.rank}: start it with "
                f"{RANK}={basis.key.rank}"
            )
        for index, piece in self._columns.values():
            _fill(piece, basis.A, index, 1)
        for index, piece in self._rows.values():
            _fill(piece, basis.B, index, 0)
        self.basis = basis
        return None

    def _check(self, basis: Basis) -> None:
        if self.basis is not None and basis.sha256 != self.basis.sha256:
            raise BasisError(
                f"the adapter's frozen pair is {basis.key} with sha256 {basis.sha256[:12]}, and this engine's adapters "
                f"share {self.basis.key} with sha256 {self.basis.sha256[:12]}: serve it from an engine of its own, or "
                "train it on the same pair (in_max and out_max of the spec set the widths)"
            )

    def _piece(self, pieces: dict[bytes, tuple[Tensor, Tensor]], index: Tensor, shape: tuple[int, int]) -> Tensor:
        key = index.cpu().numpy().tobytes()
        if key not in pieces:
            pieces[key] = (index.cpu(), torch.zeros(shape, dtype=self.dtype, device=self.device))
        return pieces[key][1]


def _fill(piece: Tensor, whole: Tensor, index: Tensor, axis: int) -> None:
    """Copies whole's lines `index` of an axis into the first corner of a piece; lines that whole lacks stay zero."""
    there = index < whole.shape[axis]
    lines = whole.index_select(axis, index[there]).to(piece.device, piece.dtype)
    at = there.nonzero()[:, 0].to(piece.device)
    if axis == 1:
        piece[: lines.shape[0], at] = lines
    else:
        piece[at, : lines.shape[1]] = lines


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, in), weight (out, in) -> (rows, out)."""
    if weight.device.type == "cpu" and x.shape[0] <= FEW:
        return (weight @ x.t()).t()
    return x @ weight.t()
