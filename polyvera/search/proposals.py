"""Proposals: candidates that fit a byte budget, by saliency and a knapsack, by chance, or everywhere alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest

import numpy as np

from polyvera.adapter.layout import Widths, layout_of
from polyvera.adapter.method import METHODS, OWN_WIDTH, Method
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import DEFAULT
from polyvera.errors import LayoutError, RecipeError
from polyvera.search.candidate import Candidate, Sizer, sites_of
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.train.many_runs import of_method

POWERS = (0.0, 0.5, 1.0)  # of a saliency: how many layers, or how salient ones
MATRIX_RANKS = (1, 2, 4)  # where A or B is trained
SHARES_OF_RANK = (1, 4, 16)  # of a method's own rank, where it is not
MIN_HASH = 8


@dataclass(frozen=True)
class Arm:
    """A method at a rank and a precision: what is left to choose are the layers, or the size of a hash."""

    method: str
    rank: int
    stored: str

    def on(self, sites: Sequence[str], hash_size: int | None = None) -> Candidate:
        """The candidate on these layers."""
        return Candidate(self.method, self.rank, tuple(sites), self.stored, hash_size)


def arms(stored: str, basis_rank: int | None = None) -> list[Arm]:
    """Every row with a rank to choose that a hash could make whole, at a few ranks.

    basis_rank: of the made basis that rows which share one have, None where they draw theirs.
    """
    rows = [row for row in METHODS.values() if row.hashed == row.trained and row.rank != OWN_WIDTH]
    return [Arm(row.name, rank, stored) for row in rows for rank in _ranks(row, basis_rank)]


def _ranks(row: Method, basis_rank: int | None) -> tuple[int, ...]:
    if row.shares_basis and basis_rank is not None:
        return (basis_rank,)
    if {"A", "B"} & set(row.trained):
        return MATRIX_RANKS
    return tuple(row.rank // share for share in SHARES_OF_RANK)


@dataclass(frozen=True)
class Proposer:
    """Candidates of at most so many bytes.

    shapes: (in_features, out_features) of all layers that the search is about, in the model's order. stored: the
    precision of the numbers.
    """

    sizer: Sizer
    shapes: Mapping[str, Widths]
    num_bytes: int
    stored: str

    @property
    def _basis_rank(self) -> int | None:
        """Of the made basis, if any."""
        return None if self.sizer.recipe.basis is None else self.sizer.recipe.rank

    def uniform(self) -> list[Candidate]:
        """The default layers at each method's own rank, whole or as the largest hash that fits. Raises RecipeError."""
        plain = self.sizer.recipe.replaced(targets=DEFAULT)
        sites = [name for name in sites_of(plain, self.sizer.base) if name in self.shapes] or [*self.shapes]
        rows = [METHODS[name] for name in (AdapterSpec().method, next(iter(METHODS)))]
        ranks = [of_method(self.sizer.recipe, row.name, None)["rank"] or row.rank for row in rows]
        found = [Arm(row.name, rank, self.stored).on(sites) for row, rank in zip(rows, ranks, strict=True)]
        return list(self._checked(one for one in map(self.fitted, found) if one is not None))

    def salient(self, saliency: Mapping[str, float], num: int) -> list[Candidate]:
        """Knapsacks over the layers by saliency, and hashes on the layers that matter; methods take turns."""
        by_method: dict[str, list[Candidate]] = {}
        for arm in arms(self.stored, self._basis_rank):
            for power in POWERS:
                value = {name: energy**power for name, energy in saliency.items()}
                for one in (self._packed(arm, value), self._hashed(arm, value)):
                    if one is not None and one not in by_method.setdefault(arm.method, []):
                        by_method[arm.method].append(one)
        ranked = [sorted(own, key=lambda one: -_worth(one, saliency)) for own in by_method.values()]
        turns = (one for one in chain.from_iterable(zip_longest(*ranked)) if one is not None)
        return list(islice(self._checked(turns), num))

    def random(self, num: int, seed: int) -> list[Candidate]:
        """An arm, layers, and whether to hash, each by chance."""
        draw, every, found = np.random.RandomState(seed), arms(self.stored, self._basis_rank), list[Candidate]()
        for _ in range(50 * num):
            arm = every[draw.randint(len(every))]
            value = dict(zip(self.shapes, draw.rand(len(self.shapes)).tolist(), strict=True))
            one = self._packed(arm, value) if draw.rand() < 0.5 else self._hashed(arm, value)
            if one is not None and one not in found:
                found.append(one)
            if len(found) == num:
                break
        return list(self._checked(found))

    def fitted(self, candidate: Candidate) -> Candidate | None:
        """The candidate itself where it fits, else as the largest hash that does, None where none does."""
        if self._fits(candidate):
            return candidate
        found = most_that_fits(
            MIN_HASH, self._room(candidate), lambda size: self._fits(replace(candidate, hash_size=size))
        )
        return None if found is None else replace(candidate, hash_size=found)

    def _packed(self, arm: Arm, value: Mapping[str, float]) -> Candidate | None:
        """The layers of the largest value whose letters fit, by the density of value."""
        costs = {name: self._bits(arm, name) for name in self.shapes}
        room, chosen = self._room(arm.on([*self.shapes])) * STORED_DTYPES[arm.stored].bits, list[str]()
        for name in sorted(self.shapes, key=lambda name: -value[name] / costs[name]):
            if costs[name] <= room:
                room, chosen = room - costs[name], [*chosen, name]
        num = most_that_fits(1, len(chosen), lambda num: self._fits(arm.on(self._in_order(chosen[:num]))))
        return None if num is None else arm.on(self._in_order(chosen[:num]))

    def _hashed(self, arm: Arm, value: Mapping[str, float]) -> Candidate | None:
        """The largest hash that fits, on the half of the layers with the most value."""
        most = sorted(self.shapes, key=lambda name: -value[name])[: max(1, len(self.shapes) // 2)]
        return self.fitted(arm.on(self._in_order(most)))

    def _in_order(self, sites: Sequence[str]) -> list[str]:
        return [name for name in self.shapes if name in sites]

    def _bits(self, arm: Arm, site: str) -> int:
        layout = layout_of(AdapterSpec(arm.method, arm.rank), {site: self.shapes[site]})
        return layout.num_params * STORED_DTYPES[arm.stored].bits

    def _room(self, candidate: Candidate) -> int:
        """About how many numbers its letters may have."""
        try:
            num, least = MIN_HASH, self.sizer.file_bytes(replace(candidate, hash_size=MIN_HASH))
        except LayoutError:  # its letters are fewer than the smallest hash
            num, least = self.sizer.num_params(candidate), self.sizer.file_bytes(candidate)
        return max(0, num + 8 * (self.num_bytes - least) // STORED_DTYPES[candidate.stored].bits)

    def _fits(self, candidate: Candidate) -> bool:
        bits = STORED_DTYPES[candidate.stored].bits
        try:
            is_near = self.sizer.num_params(candidate) * bits <= 8 * self.num_bytes
            return is_near and self.sizer.file_bytes(candidate) <= self.num_bytes
        except LayoutError:  # a hash of more numbers than it would make
            return False

    def _checked(self, found: Iterator[Candidate] | Sequence[Candidate]) -> Iterator[Candidate]:
        """Those found; raises RecipeError where there is none."""
        is_empty = True
        for one in found:
            is_empty = False
            yield one
        if is_empty:
            least = self.sizer.file_bytes(arms(self.stored)[0].on([*self.shapes][:1], 1))
            raise RecipeError(
                f"bytes={self.num_bytes}: no adapter fits; a file without letters has about {least} bytes, "
                "those of its header and of a trained head: give more bytes"
            )


def most_that_fits(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of least ... most that fits, where what fits fits with less, too; None where none does."""
    high, step = most + 1, 1  # high does not fit; steps down from most double, since it is about what fits
    while (low := max(high - step, least)) < high and not fits(low):
        high, step = low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if least <= low < high else None


def _worth(candidate: Candidate, saliency: Mapping[str, float]) -> float:
    return sum(saliency[name] for name in candidate.sites)
