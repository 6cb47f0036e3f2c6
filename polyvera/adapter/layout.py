"""Layout: which trained tensors an adapter has in one model, their shapes, order and place in one flat vector.

Layers that differ only in their number and are alike in shape are one stack, so a whole adapter is a handful of
tensors on disk and one row of memory in a bank. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from polyvera.adapter.method import Method, Scale
from polyvera.adapter.spec import GIVEN, AdapterSpec, BasisKey, is_named
from polyvera.errors import LayoutError, did_you_mean

Shape = tuple[int, ...]
Widths = tuple[int, ...]  # (in_features, out_features), and the number of experts where a layer is a stack of them
Heads = tuple[tuple[str, Shape], ...]
MAX_HASHED = 2**28  # 1 GiB, which is made at load
THETA = "theta"  # the numbers that a hash makes letters of
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted layer: its name in the model, its widths, its rank, and the (factor, divisor) of its delta.

    num_experts: of a stack of matrices, whose letters all have a leading axis of that size; 0 for one matrix.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    scale: Scale
    num_experts: int = 0

    @property
    def widths(self) -> Widths:
        """(in_features, out_features), and num_experts where it is a stack."""
        both = (self.in_features, self.out_features)
        return (*both, self.num_experts) if self.num_experts else both


@dataclass(frozen=True, slots=True)
class Entry:
    """One trained tensor of one layer (letter is '' for a head's): its shape and place in the flat vector.

    What a hash makes letters of is one tensor of no layer, whose letter is THETA.
    """

    key: str
    site: str
    letter: str
    shape: Shape
    offset: int

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Stack:
    """Entries of one letter over like layers, stored as one tensor of shape (len(entries), *shape)."""

    key: str
    entries: tuple[Entry, ...]

    @property
    def shape(self) -> Shape:
        """The stored shape; a lone entry, or one that all layers have in common, has no leading axis."""
        return self.of_all(self.entries[0].shape)

    def of_all(self, inner: Shape) -> Shape:
        """The shape of all entries in one tensor, each of which has that shape."""
        return inner if len(self.entries) == 1 else (len(self.entries), *inner)

    @property
    def offset(self) -> int:
        """Where the stack begins in the flat vector."""
        return self.entries[0].offset

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All that decides a forward save the trained values. Adapters of equal layout share one bank.

    basis: the shared pair, where the method has one. seed: names the frozen factors that are drawn for each layer.
    hash_size: how many numbers stand for the letters that a hash makes, None for no hash; a bank's layout has none.
    """

    method: Method
    sites: tuple[Site, ...]
    basis: BasisKey | None = None
    seed: int | None = None
    head: Heads = ()
    hash_size: int | None = None

    @cached_property
    def expanded(self) -> Layout:
        """The layout of the letters themselves, which a bank has."""
        return self if self.hash_size is None else replace(self, hash_size=None)

    @property
    def stored_letters(self) -> tuple[str, ...]:
        """The trained letters that are stored as they are."""
        method = self.method
        return method.trained if self.hash_size is None else tuple(x for x in method.trained if x not in method.hashed)

    @cached_property
    def patterns(self) -> dict[str, tuple[Site, ...]]:
        """Like layers under one name with `*` for the layer number, in number order; a lone layer under its own."""
        groups: dict[str, list[Site]] = {}
        for site in self.sites:
            groups.setdefault(NUMBER.sub("*", site.name, count=1), []).append(site)
        return {key: tuple(group) for found in groups.items() for key, group in _alike(*found)}

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The stored tensors, sorted by key, which is their order in the flat vector and on disk."""
        named: dict[str, list[tuple[str, str, str, Shape]]] = {}
        for pattern, sites in self.patterns.items():
            for letter in self.stored_letters:
                own = sites[:1] if letter in self.method.tied else sites
                named[f"{pattern}.{letter}"] = [
                    (f"{s.name}.{letter}", s.name, letter, self.method.shape(letter, s.rank, *s.widths)) for s in own
                ]
        for key, shape in self.head:
            named[key] = [(key, "", "", shape)]
        if self.hash_size is not None:
            named[THETA] = [(THETA, "", THETA, (self.hash_size,))]
        return tuple(_placed(named))

    @property
    def title(self) -> str:
        """Method, rank and number of layers, for people."""
        ranks = sorted({site.rank for site in self.sites})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        hashed = "" if self.hash_size is None else f", a hash of {self.hash_size:,}"
        return f"{self.method.name}, {rank}, {len(self.sites)} layers{hashed}"

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every trained tensor by its key, `site.letter`; that of a tied letter is in one place for all its layers."""
        found = {entry.key: entry for stack in self.stacks for entry in stack.entries}
        for sites in self.patterns.values():
            for letter in (x for x in self.method.tied if x in self.stored_letters):
                first = found[f"{sites[0].name}.{letter}"]
                found |= {k: replace(first, key=k, site=s.name) for s in sites[1:] for k in [f"{s.name}.{letter}"]}
        return found

    @cached_property
    def site_names(self) -> tuple[str, ...]:
        """The adapted layers, in the model's order."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def num_params(self) -> int:
        """Trained numbers, the head's included."""
        return sum(stack.size for stack in self.stacks)

    @cached_property
    def max_rank(self) -> int:
        """The largest of the layers' ranks."""
        return max(site.rank for site in self.sites)

    @property
    def num_head_params(self) -> int:
        """Trained numbers of the head."""
        return sum(prod(shape) for _, shape in self.head)

    @property
    def frozen_seed(self) -> int | None:
        """The seed, where a frozen factor of each layer is drawn from it."""
        return self.seed if self.method.draws_by_seed else None

    def check(self, spec: AdapterSpec) -> None:
        """Raises LayoutError where the spec does not give this layout on these layers, whatever basis was given."""
        if spec not in self._checked:
            wrong = next(_differences(self, spec), None)
            if wrong is not None:
                raise LayoutError(f"this spec and this layout do not belong together: {wrong}")
            self._checked.add(spec)

    def check_hash(self) -> None:
        """Raises LayoutError for a hash of more numbers than it would make, or that makes more than MAX_HASHED."""
        if self.hash_size is None:
            return
        letters = self.method.hashed
        made = sum(e.size for stack in self.expanded.stacks for e in stack.entries if e.letter in letters)
        if not self.hash_size <= made <= MAX_HASHED:
            raise LayoutError(
                f"hash_size={self.hash_size} numbers would stand for the {made} of {self.title}: a hash stands for at "
                f"least as many as it has, and for at most {MAX_HASHED}"
            )

    @cached_property
    def _checked(self) -> set[AdapterSpec]:
        return set()

    def key(self) -> tuple[object, ...]:
        """What two adapters must have in common to share a bank."""
        hashing = None if self.hash_size is None else (self.hash_size, self.seed)
        return (tuple(self.method.factors.items()), self.sites, self.basis, self.frozen_seed, self.head, hashing)


def _alike(pattern: str, sites: list[Site]) -> Iterator[tuple[str, list[Site]]]:
    same = len({(s.widths, s.rank, s.scale) for s in sites}) == 1
    if len(sites) > 1 and same:
        yield pattern, sorted(sites, key=lambda s: layer_number(s.name))
    else:
        yield from ((site.name, [site]) for site in sites)


def _placed(named: Mapping[str, list[tuple[str, str, str, Shape]]]) -> Iterator[Stack]:
    offset = 0
    for key in sorted(named):
        entries = []
        for name, site, letter, shape in named[key]:
            entries.append(Entry(name, site, letter, shape, offset))
            offset += prod(shape)
        yield Stack(key, tuple(entries))


def _differences(layout: Layout, spec: AdapterSpec) -> Iterator[str]:
    """What a spec says otherwise than a layout, in words."""
    if layout.method.factors != spec.row.factors:
        yield f"the spec is of {spec.method}, the layout of {layout.method.name}"
    if layout.hash_size != spec.hash_size:
        yield f"the spec has hash_size={spec.hash_size}, the layout {layout.hash_size}"
    if (layout.frozen_seed is not None or layout.hash_size is not None) and layout.seed != spec.seed:
        yield f"the spec has seed={spec.seed}, the layout {layout.seed}"
    for site in layout.sites:
        rank = spec.row.rank_within(spec.rank_of(site.name), site.out_features)
        scale = spec.scale_of(site.name)
        if (site.rank, site.scale) != (rank, scale):
            yield f"{site.name} has rank {site.rank} and scale {site.scale}, the spec gives {rank} and {scale}"
    if layout.basis is not None and (layout.basis.init != GIVEN or spec.made_basis):
        named = basis_key(spec, {s.name: s.widths for s in layout.sites})
        if named != layout.basis:
            yield f"the spec names the basis {named}, the layout {layout.basis}"
    for key, _ in layout.head:
        if not any(key == name or key.startswith(name + ".") for name in spec.head):
            yield f"the layout has a head tensor {key!r}, the spec the heads {spec.head}"


def layer_number(name: str) -> int:
    """The first number in a layer's name, or -1."""
    found = NUMBER.search(name)
    return int(found.group()) if found else -1


def layout_of(spec: AdapterSpec, shapes: Mapping[str, Widths], head: Mapping[str, Shape] | None = None) -> Layout:
    """The layout of a spec on layers of the given widths. Raises LayoutError.

    The widest layer sets in_max and out_max of the basis unless the spec names wider ones.
    """
    if not shapes:
        raise LayoutError("no layer to adapt: targets matched none")
    sites = tuple(_site(spec, name, *widths) for name, widths in shapes.items())
    for name, _ in (*spec.rank_pattern, *spec.alpha_pattern):
        if not any(is_named(site, name) for site in shapes):
            raise LayoutError(
                f"rank_pattern or alpha_pattern names {name!r}, which is not among the adapted layers"
                f"{did_you_mean(name, shapes)}"
            )
    basis = basis_key(spec, shapes) if spec.row.shares_basis else None
    layout = Layout(spec.row, sites, basis, spec.seed, tuple(sorted((head or {}).items())), spec.hash_size)
    _check_rank(layout)
    layout.check_hash()
    return layout


def _site(spec: AdapterSpec, name: str, in_features: int, out_features: int, num_experts: int = 0) -> Site:
    rank = spec.row.rank_within(spec.rank_of(name), out_features)
    return Site(name, in_features, out_features, rank, spec.scale_of(name), num_experts)


def _check_rank(layout: Layout) -> None:
    """Raises LayoutError for more directions of a weight than it has."""
    for site in layout.sites if layout.method.reads_base else ():
        if site.num_experts:
            raise LayoutError(
                f"{site.name} is a stack of experts, which have no singular vectors in common: leave it out"
            )
        most = min(site.in_features, site.out_features)
        if site.rank > most:
            raise LayoutError(
                f"rank={site.rank}, but the weight of {site.name} has {most} singular vectors: take a lower rank, or "
                "leave the layer out"
            )


def basis_key(spec: AdapterSpec, shapes: Mapping[str, Widths]) -> BasisKey:
    """The basis that a spec names on these layers. Raises LayoutError where the spec asks for a narrower one."""
    widest_in, widest_out = (max(w[axis] for w in shapes.values()) for axis in (0, 1))
    in_max, out_max = spec.in_max or widest_in, spec.out_max or widest_out
    if in_max < widest_in or out_max < widest_out:
        raise LayoutError(
            f"in_max={in_max}, out_max={out_max} is narrower than the widest adapted layer ({widest_in} in, "
            f"{widest_out} out); widen the basis or adapt fewer layers"
        )
    rank = spec.common_rank
    if spec.made_basis:
        return BasisKey(GIVEN, 0, rank, in_max, out_max, sha256=spec.made_basis)
    return BasisKey(spec.basis_init or "", spec.seed, rank, in_max, out_max, spec.basis_dtype)
