"""Hashing: the trained letters of an adapter as a fixed function of a few stored numbers.

    letter[j] = start[j] + s[j] θ[h[j]]

θ (hash_size,) is what is trained and stored; it starts at 0, where each letter is as its row of the table starts it. h
gives every θ equally many letters' numbers, give or take one, and s is their sign; both are drawn from the seed. A
letter that starts from the base's own weights, and a head, are stored as they are. On LoRA it is the map of Uni-LoRA
(Li 2025) without its factor 1/√n, which is a factor of the learning rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from polyvera.adapter.basis import DRAWS, draw_factor
from polyvera.adapter.layout import THETA, Entry, Heads, Layout, Site
from polyvera.adapter.method import D_INIT, ONES
from polyvera.adapter.spec import AdapterSpec, BasisKey
from polyvera.errors import LayoutError


@dataclass(frozen=True, eq=False)
class Hashing:
    """The map of one spec on one layout.

    layout: of what is stored. columns: (n,) of the expanded flat vector that θ makes: number columns[j] is start[j] +
    sign[j] θ[index[j]]. first: (hash_size,) for each θ a j of its own. kept: the other numbers' places in the stored
    and in the expanded flat vector.
    """

    layout: Layout
    columns: Tensor
    index: Tensor
    sign: Tensor
    start: Tensor
    first: Tensor
    kept: tuple[Tensor, Tensor]
    _copies: dict[torch.device, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def expand(self, flat: Tensor) -> Tensor:
        """The stored numbers as those of the expanded layout, fp32 on the CPU."""
        theta = self.layout.entries[THETA]
        out = torch.empty(self.layout.expanded.num_params)
        out[self.columns] = self.start + self.sign * flat[theta.offset : theta.offset + theta.size][self.index]
        out[self.kept[1]] = flat[self.kept[0]]
        return out

    def fold(self, expanded: Tensor) -> Tensor:
        """The inverse of expand()."""
        theta = self.layout.entries[THETA]
        flat = torch.empty(self.layout.num_params)
        moved = (expanded[self.columns[self.first]] - self.start[self.first]) * self.sign[self.first]
        flat[theta.offset : theta.offset + theta.size] = moved
        flat[self.kept[0]] = expanded[self.kept[1]]
        return flat

    def tie(self, grads: Tensor) -> None:
        """Projects gradients (slots, expanded numbers) onto what the map can follow, in place; twice is as once.

        Each number gets ± the mean of what its θ's numbers get. The norm is that of the gradient of √n θ, by which the
        map is an isometry, and Adam, whose step does not depend on a gradient's size, moves all of a θ's numbers alike.
        """
        columns, index, sign, count = self._on(grads.device)
        summed = grads.new_zeros(len(grads), len(self.first))
        summed.index_add_(1, index, grads[:, columns] * sign)
        grads[:, columns] = (summed / count)[:, index] * sign

    def tie_parts(self, parts: Sequence[tuple[Entry, Tensor]], grads: Tensor) -> None:
        """tie() of gradients (slots, *shape) of some entries, in place. grads: zeros (slots, expanded numbers)."""
        for entry, grad in parts:
            grads[:, entry.offset : entry.offset + entry.size] = grad.flatten(1)
        self.tie(grads)
        for entry, grad in parts:
            grad.copy_(grads[:, entry.offset : entry.offset + entry.size].reshape(grad.shape))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if device not in self._copies:
            count = torch.bincount(self.index, minlength=len(self.first))
            here = (t.to(device) for t in (self.columns, self.index, self.sign, count))
            self._copies[device] = next(here), next(here), next(here), next(here)
        return self._copies[device]


def hashing_of(spec: AdapterSpec, layout: Layout) -> Hashing:
    """The map of a spec with a hash_size; layout: expanded or not. The same object for the same arguments."""
    return _hashing(spec, layout.sites, layout.basis, layout.head)


@lru_cache(maxsize=16)
def _hashing(spec: AdapterSpec, sites: tuple[Site, ...], basis: BasisKey | None, head: Heads) -> Hashing:
    layout = Layout(spec.row, sites, basis, spec.seed, head, spec.hash_size)
    plain = [entry for stack in layout.expanded.stacks for entry in stack.entries]
    made = [entry for entry in plain if entry.letter in spec.row.hashed]
    kept = [entry for entry in plain if entry.letter not in spec.row.hashed]
    start = torch.cat([initial(entry, spec).flatten() for entry in made])
    index, sign = _drawn(spec.seed, layout.entries[THETA].size, len(start))
    places = _places([layout.entries[entry.key] for entry in kept]), _places(kept)
    return Hashing(layout, _places(made), index, sign, start, _first(index, start), places)


def _places(entries: Sequence[Entry]) -> Tensor:
    """The places of some entries in their flat vector, one after the other."""
    return torch.cat([torch.arange(0), *(torch.arange(e.offset, e.offset + e.size) for e in entries)])


def check_same_hash(own: AdapterSpec, start: AdapterSpec) -> None:
    """Raises LayoutError where numbers that a hash makes would be trained from some that it does not make."""
    wanted, given = ((s.hash_size, s.seed, s.d_init) for s in (own, start))
    if own.hash_size is not None and wanted != given:
        raise LayoutError(
            f"hash_size={wanted[0]} with seed={wanted[1]}, d_init={wanted[2]} does not train an adapter that has "
            f"{given[0]}, {given[1]}, {given[2]}: start from one of the same hash"
        )


def _drawn(seed: int, size: int, num: int) -> tuple[Tensor, Tensor]:
    """h and s from numpy's frozen legacy stream."""
    stream = np.random.RandomState(list(hashlib.sha256(f"{seed}:hash:{size}".encode()).digest()))
    index = torch.from_numpy(stream.permutation(num) % size)
    return index, torch.from_numpy(np.frombuffer(stream.bytes(num), np.uint8) % 2 * np.float32(2) - 1)


def _first(index: Tensor, start: Tensor) -> Tensor:
    """For each θ one number that it makes, of those that start at 0 where there are any: it gives θ back exactly."""
    order = torch.argsort((start != 0).to(torch.int8), stable=True)
    _, found = np.unique(index[order].numpy(), return_index=True)
    return order[torch.from_numpy(found)]


def initial(entry: Entry, spec: AdapterSpec) -> Tensor:
    """What a trained letter of a layer starts as, where that does not depend on the base; else 0."""
    init = spec.row.factors[entry.letter].init
    if init in DRAWS:
        return draw_factor(init, spec.seed, entry.key, entry.shape)
    return torch.full(entry.shape, {D_INIT: spec.d_init, ONES: 1.0}.get(init, 0.0))
