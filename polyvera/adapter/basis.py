"""Basis: the frozen pair A, B that a whole model and all its adapters share, drawn bit for bit alike everywhere.

The draw is PEFT's (one Mersenne Twister, A first, then B, a 24-bit fraction of each word, one fused
multiply-add), computed here in float64 and rounded once, so it does not depend on the processor's fma.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from polyvera.adapter.method import KAIMING, NORMAL
from polyvera.adapter.spec import GIVEN, BasisKey
from polyvera.errors import BasisError, did_you_mean

Array = NDArray[np.float32]
Stream = np.random.RandomState


@dataclass(frozen=True, eq=False)
class Basis:
    """A (rank, in_max) and B (out_max, rank) in fp32 on the CPU, and one copy in each dtype and device asked for."""

    key: BasisKey
    A: torch.Tensor
    B: torch.Tensor
    sha256: str
    _copies: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False
    )
    _parts: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    def part(
        self, device: torch.device, dtype: torch.dtype, in_features: int, out_features: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What one layer takes of A and B, views of to(): A (rank, in_features), B (out_features, rank)."""
        which = (device, dtype, in_features, out_features)
        if which not in self._parts:
            A, B = self.to(device, dtype)
            with torch.inference_mode(False):
                self._parts[which] = A[:, :in_features], B[:out_features]
        return self._parts[which]

    def to(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B there and so; the same two storages at every call."""
        where = (device, dtype)
        if where not in self._copies:
            # A copy first made under inference_mode could never take part in training.
            with torch.inference_mode(False):
                self._copies[where] = (self.A.to(device, dtype), self.B.to(device, dtype))
        return self._copies[where]

    def __deepcopy__(self, memo: object) -> Basis:
        return self  # frozen: a copy of a model shares the basis of the model


@lru_cache(maxsize=8)
def draw_basis(key: BasisKey) -> Basis:
    """The basis of that name. Raises BasisError for an unknown init.

    `kaiming_uniform` equals PEFT's VeRA draw for the same seed, rank and widths (gain √2, fan-in).
    """
    if key.init not in BASES:
        raise BasisError(f"init={key.init!r} must be one of: {', '.join(BASES)}{did_you_mean(key.init, BASES)}")
    A, B = BASES[key.init](np.random.RandomState(key.seed), key)
    dtype = getattr(torch, key.dtype)
    return _basis(key, *(torch.from_numpy(x).to(dtype).float() for x in (A, B)))


# Every basis that no recipe draws by its sha256, for as long as anybody uses it.
_GIVEN: WeakValueDictionary[str, Basis] = WeakValueDictionary()


def given_basis(A: torch.Tensor, B: torch.Tensor) -> Basis:
    """A basis that no recipe draws; its name is its sha256. The same object for the same values."""
    A, B = A.detach().float().cpu().contiguous(), B.detach().float().cpu().contiguous()
    key = BasisKey(GIVEN, 0, A.shape[0], A.shape[1], B.shape[0], sha256=digest(A, B))
    return _GIVEN.setdefault(key.sha256, _basis(key, A, B))


def basis_at_hand(sha256: str) -> Basis | None:
    """The basis of that sha256 that no recipe draws, where this process has it."""
    return _GIVEN.get(sha256)


def basis_of(key: BasisKey) -> Basis:
    """The basis of that name: drawn, or at hand. Raises BasisError for a given one that is not, an unknown init."""
    if key.init != GIVEN:
        return draw_basis(key)
    found = basis_at_hand(key.sha256)
    if found is None:
        raise BasisError(
            f"the basis {key.sha256[:12] or 'of this adapter'} is one that no recipe draws, and it is not at hand: "
            "read it with Registry.bases.get(), from the store that keeps it"
        )
    if found.key != key:
        raise BasisError(f"the basis {key.sha256[:12]} is {found.key}, and not {key}")
    return found


def _basis(key: BasisKey, A: torch.Tensor, B: torch.Tensor) -> Basis:
    return Basis(key, A, B, digest(A, B))


def digest(A: torch.Tensor, B: torch.Tensor) -> str:
    """sha256 of the shapes and of the little-endian fp32 values of A, then of B."""
    sha = hashlib.sha256(f"{tuple(A.shape)}{tuple(B.shape)}".encode())
    for matrix in (A, B):
        sha.update(matrix.contiguous().numpy().astype("<f4", copy=False).tobytes())
    return sha.hexdigest()


def uniform(stream: Stream, shape: tuple[int, ...], low: float, high: float) -> Array:
    """Uniform fp32 in [low, high], torch's CPU stream for the same seed, independent of the processor."""
    words = np.frombuffer(stream.bytes(4 * int(np.prod(shape))), dtype="<u4").reshape(shape)
    lo, hi = np.float32(low), np.float32(high)
    fraction = (words & np.uint32(0xFFFFFF)).astype(np.float64) * 2.0**-24
    return (fraction * np.float64(hi - lo) + np.float64(lo)).astype(np.float32)


def normal(stream: Stream, shape: tuple[int, ...], std: float) -> Array:
    """N(0, std²) in fp32 from numpy's frozen legacy stream."""
    return (stream.standard_normal(shape) * std).astype(np.float32)


def orthonormal(stream: Stream, rows: int, columns: int) -> NDArray[np.float64]:
    """Orthonormal rows (rows, columns), in blocks of at most `columns` rows, by Gram-Schmidt done twice."""
    blocks = [_orthonormal_block(stream, min(columns, rows - at), columns) for at in range(0, rows, columns)]
    return np.concatenate(blocks)


def _orthonormal_block(stream: Stream, rows: int, columns: int) -> NDArray[np.float64]:
    Q = stream.standard_normal((rows, columns))
    for i in range(rows):
        for _ in range(2):
            weights = tree_sum(Q[:i] * Q[i])
            Q[i] -= tree_sum((Q[:i] * weights[:, None]).T)
        Q[i] /= np.sqrt(tree_sum(Q[i : i + 1] * Q[i])[0])
    return Q


def tree_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the rows (n, k) -> (n,) in a fixed order, so that the bits do not depend on a BLAS or its threads."""
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        odd = terms[..., 2 * half :]
        terms = np.concatenate([terms[..., :half] + terms[..., half : 2 * half], odd], axis=-1)
    return terms[..., 0] if terms.shape[-1] else np.zeros(terms.shape[:-1])


def _kaiming_uniform(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    a, b = sqrt(3.0) * (sqrt(2.0) / sqrt(key.in_max)), sqrt(3.0) * (sqrt(2.0) / sqrt(key.rank))
    return uniform(stream, (key.rank, key.in_max), -a, a), uniform(stream, (key.out_max, key.rank), -b, b)


def _kaiming_normal(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    a, b = sqrt(2.0 / key.in_max), sqrt(2.0 / key.rank)
    return normal(stream, (key.rank, key.in_max), a), normal(stream, (key.out_max, key.rank), b)


def _uniform(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    A = uniform(stream, (key.rank, key.in_max), 0.0, 0.1)
    return A, uniform(stream, (key.out_max, key.rank), 0.0, 0.1)


def _orthogonal(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    A = sqrt(2.0) * orthonormal(stream, key.rank, key.in_max)
    B = sqrt(2.0 * key.out_max / key.rank) * orthonormal(stream, key.rank, key.out_max).T
    return A.astype(np.float32), np.ascontiguousarray(B.astype(np.float32))


def _tight_frame(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    A = sqrt(2.0 * max(key.rank / key.in_max, 1.0)) * _frame(stream, key.rank, key.in_max)
    B = sqrt(2.0 * max(key.out_max / key.rank, 1.0)) * _frame(stream, key.rank, key.out_max).T
    return A.astype(np.float32), np.ascontiguousarray(B.astype(np.float32))


def _frame(stream: Stream, rows: int, columns: int) -> NDArray[np.float64]:
    """A matrix (rows, columns) whose shorter side is orthonormal."""
    return orthonormal(stream, rows, columns) if rows <= columns else orthonormal(stream, columns, rows).T


def _hadamard(stream: Stream, key: BasisKey) -> tuple[Array, Array]:
    A = sqrt(2.0 / key.in_max) * _signs(stream, key.rank, key.in_max)
    B = sqrt(2.0 / key.rank) * _signs(stream, key.out_max, key.rank)
    return A.astype(np.float32), B.astype(np.float32)


def _signs(stream: Stream, rows: int, columns: int) -> NDArray[np.float64]:
    """Rows and columns of Sylvester's matrix of ±1, drawn without repetition, and the sign of each column."""
    size = 1 << (max(rows, columns) - 1).bit_length()
    chosen = stream.permutation(size)[:rows, None] & stream.permutation(size)[None, :columns]
    for shift in (16, 8, 4, 2, 1):  # the parity of the bits
        chosen ^= chosen >> shift
    return (1.0 - 2.0 * (chosen & 1)) * (1.0 - 2.0 * stream.randint(2, size=columns))


# One entry an init. Kaiming as in PEFT; uniform [0, 0.1] is the ablation of the VeRA paper; orthogonal has
# rows (of A) and columns (of B) at right angles, in blocks where there are more of them than they are long; a tight
# frame has its shorter side orthonormal instead; Hadamard's are of ±1. All but uniform have kaiming's average size.
BASES: dict[str, Callable[[Stream, BasisKey], tuple[Array, Array]]] = {
    "kaiming_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
    "uniform": _uniform,
    "orthogonal": _orthogonal,
    "tight_frame": _tight_frame,
    "hadamard": _hadamard,
}

# The per-layer factors that are drawn: a stream of its own for each layer and letter, so that neither the order of
# layers nor the set of targets changes a draw.
DRAWS: dict[str, Callable[[Stream, tuple[int, ...]], Array]] = {
    KAIMING: lambda stream, shape: uniform(stream, shape, -1 / sqrt(shape[-1]), 1 / sqrt(shape[-1])),
    NORMAL: lambda stream, shape: normal(stream, shape, 0.02),
}


def draw_factor(init: str, seed: int, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One layer's own factor, from the seed and its key `site.letter`."""
    sha = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.from_numpy(DRAWS[init](np.random.RandomState(list(sha)), shape))
