"""Layer basis: the frozen matrices that each layer has of its own, made again wherever its adapter is loaded.

Drawn for each layer from the seed; waves as long as the layer is wide, of frequencies that the seed draws; or the
directions of the layer's own weight. All have the average size of a kaiming pair, so that a rate carries over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import pi, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from polyvera.adapter.base_layer import BaseLayer, dense_weight
from polyvera.adapter.basis import DRAWS, draw_factor
from polyvera.adapter.layout import Layout, Site
from polyvera.adapter.method import DCT, FOURIER, IDENTITY, SVD, factor_shape
from polyvera.errors import BasisError

Table = NDArray[np.float64]
Number = NDArray[np.int64]
A_GAIN = sqrt(2.0)  # of a row of A, whose norm is 1 without it


def frozen_factors(layout: Layout, site: Site, base: BaseLayer | None = None) -> dict[str, Tensor]:
    """The matrices of one layer that are neither trained nor shared, by letter, fp32; like ones are one storage.

    base: the layer, for matrices that are computed from its weight. Raises BasisError where it is needed and not given.
    """
    return {
        letter: MAKERS[layout.method.factors[letter].init](layout, site, letter, base) for letter in layout.method.made
    }


def _drawn(init: str, layout: Layout, site: Site, letter: str, base: BaseLayer | None) -> Tensor:
    shape = factor_shape(letter, site.rank, *site.widths)
    return draw_factor(init, layout.seed or 0, f"{site.name}.{letter}", shape)


def _waved(init: str, layout: Layout, site: Site, letter: str, base: BaseLayer | None) -> Tensor:
    return waves(init, layout.seed or 0, letter, site.rank, site.in_features if letter == "A" else site.out_features)


def _directed(layout: Layout, site: Site, letter: str, base: BaseLayer | None) -> Tensor:
    if base is None:
        raise BasisError(
            f"the basis of {site.name} is the singular vectors of the base's own weight, and the base is not at hand: "
            "load() the adapter into it, or give it"
        )
    return directions(base, site.rank)[letter]


def _identity(layout: Layout, site: Site, letter: str, base: BaseLayer | None) -> Tensor:
    return identity(site.out_features, site.rank)


# One entry an init of a frozen matrix that each layer has of its own.
MAKERS: Mapping[str, Callable[[Layout, Site, str, BaseLayer | None], Tensor]] = {
    **{init: partial(_drawn, init) for init in DRAWS},
    **{init: partial(_waved, init) for init in (FOURIER, DCT)},
    SVD: _directed,
    IDENTITY: _identity,
}


@lru_cache(maxsize=64)
def identity(rows: int, rank: int) -> Tensor:
    """(rows, rank): row i is the unit vector of i modulo the rank, so all of them differ at a rank of `rows`."""
    return torch.eye(rank)[torch.arange(rows) % rank]


@lru_cache(maxsize=64)
def waves(init: str, seed: int, letter: str, rank: int, width: int) -> Tensor:
    """A (rank, width), or B (width, rank), of waves at right angles whose frequencies are drawn without repetition.

    More than `width` of them are drawn in blocks, each of every frequency once. FourierFT (Gao 2024) and MaCP (Shen
    2025) add waves over the whole matrix; each of these is the product of one over its columns and one over its rows,
    whose rank is 1.
    """
    stream = np.random.RandomState(list(hashlib.sha256(f"{seed}:{init}:{letter}".encode()).digest()))
    blocks = [stream.permutation(width)[: rank - at] for at in range(0, rank, width)]
    rows = WAVES_OF[init](np.concatenate([np.arange(0), *blocks])[:, None], width)
    scaled = A_GAIN * rows if letter == "A" else sqrt(2.0 * width / max(rank, 1)) * rows.T
    return torch.from_numpy(np.ascontiguousarray(scaled.astype(np.float32)))


def _cosines(frequency: Number, width: int) -> Table:
    """The DCT-II: cos π k (j + 1/2) / width, of norm 1. Angles are a table's, so that processors agree on the bits."""
    table = np.cos(np.arange(4 * width) * (pi / (2 * width)))
    found: Table = table[frequency * (2 * np.arange(width) + 1) % (4 * width)]
    found *= np.where(frequency == 0, sqrt(1 / width), sqrt(2 / width))
    return found


def _sines_and_cosines(frequency: Number, width: int) -> Table:
    """The real Fourier basis: 1, then the cosine and the sine of each number of periods, of norm 1."""
    angles = np.arange(width) * (2 * pi / width)
    periods = (frequency + 1) // 2
    at = periods * np.arange(width) % width
    found: Table = np.where(frequency % 2 == 1, np.cos(angles)[at], np.where(frequency == 0, 1.0, np.sin(angles)[at]))
    found *= np.where((frequency == 0) | (2 * periods == width), sqrt(1 / width), sqrt(2 / width))
    return found


WAVES_OF: Mapping[str, Callable[[Number, int], Table]] = {FOURIER: _sines_and_cosines, DCT: _cosines}


class Copies:
    """Copies of tensors on one device and in one dtype, one for each of them."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor there and so; the same copy at every call."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, tensor.to(self._device, self._dtype)
        return self._known[id(tensor)][1]


_DIRECTIONS = WeakTensorKeyDictionary()  # weight -> (its version, the largest rank asked for, the factors at that rank)


def directions(base: BaseLayer, rank: int) -> dict[str, Tensor]:
    """A (rank, in) and B (out, rank): the right singular vectors of a layer's weight, and the left ones times Σ.

    LoRA-XS (Bałazy 2024). In float64 of the weight rounded to bfloat16, so that copies of a base in fp32 and in bf16,
    and other machines, agree; the largest element of each right vector is positive. O(out · in · min(out, in)), once
    for each weight as long as it lives.
    """
    weight = base.weight
    assert isinstance(weight, Tensor)
    known = _DIRECTIONS.get(weight)  # type: ignore[no-untyped-call]
    if known is None or known[0] != weight._version or known[1] < rank:
        known = _DIRECTIONS[weight] = (weight._version, rank, _singular(dense_weight(base), rank))
    U, sigma, V = known[2]
    size = sqrt(2.0 * len(U)) / torch.linalg.vector_norm(sigma[:rank]).clamp(min=1e-30)
    B = size * U[:, :rank] * sigma[:rank]  # LAPACK lays U out by columns, and kernels read rows
    return {"A": (A_GAIN * V[:rank]).float().contiguous(), "B": B.float().contiguous()}


def _singular(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, V = torch.linalg.svd(W.to(torch.bfloat16).double(), full_matrices=False)
    U, sigma, V = U[:, :rank], sigma[:rank], V[:rank]
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (U * sign.T).clone(), sigma.clone(), (V * sign).clone()
