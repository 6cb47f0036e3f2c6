"""LayerSlots: the vectors of every resident adapter in one layer, and what they add to the layer's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from polyvera.adapter.equation import NormParts, Vectors, factored_row_norm
from polyvera.vllm.pair import Piece, SharedPair

# The constants of a row norm, asked for when the first magnitude comes: (A piece) -> (‖W‖², W Aᵀ, A Aᵀ).
Constants = Callable[[Tensor], NormParts]

# The slot of a token without adapter.
BASE = -1


@dataclass(frozen=True, slots=True)
class SiteVectors:
    """One adapter's vectors for one site, whole and in fp32: d (rank,), b (out,), m (out,) or None."""

    d: Tensor
    b: Tensor
    m: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PackedMember:
    """One site of a layer, which may pack several: the rows of it that are computed here, none of a site not served.

    out_features: of the whole site, over all tensor-parallel ranks. rows: (rows here,) whole numbers.
    """

    name: str
    out_features: int
    rows: Tensor
    is_served: bool = True


@dataclass(frozen=True, eq=False)
class _Part:
    """Where a member's output and its vectors lie: output, then d, b and g in a row of the table."""

    member: PackedMember
    output: slice
    d: slice
    b: slice
    g: slice


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbours that multiply with the same rows of B, in one product; output, d, b and g of all lie side by side."""

    B: Piece
    parts: tuple[_Part, ...]
    output: slice
    d: slice
    b: slice
    g: slice

    @classmethod
    def of(cls, B: Piece, parts: Sequence[_Part]) -> _Group:
        """The group of some parts."""
        first, last = parts[0], parts[-1]
        sides = [(first.output, last.output), (first.d, last.d), (first.b, last.b), (first.g, last.g)]
        return cls(B, tuple(parts), *(slice(one.start, other.stop) for one, other in sides))

    def scaled(self, u: Tensor, d: Tensor) -> Tensor:
        """d ⊙ u of each part: u (tokens, rank), d (tokens, parts * rank) -> (tokens * parts, rank)."""
        num = len(self.parts)
        return u * d if num == 1 else (u[:, None] * d.view(len(u), num, -1)).view(len(u) * num, -1)


class LayerSlots:
    """A table (1 + slots, numbers): d and b of every served member, and the gain g where magnitudes are served.

    The first row is the bare base, d = b = 0 and g = 1, since vLLM's index of a token without adapter is -1.
    """

    def __init__(
        self, pair: SharedPair, columns: Tensor, members: Sequence[PackedMember], num_slots: int, has_gain: bool
    ) -> None:
        self.pair, self.members, self.has_gain = pair, tuple(members), has_gain
        self.A = pair.columns(columns)
        self.groups = tuple(self._groups())
        width = max((group.g.stop for group in self.groups), default=0)
        self.table = torch.zeros(num_slots + 1, width, dtype=pair.dtype, device=pair.device)
        cuts = [part for group in self.groups for part in (group.d, group.b, group.g)]
        self._widths = [part.stop - part.start for part in cuts]
        self._is_one = len(self.groups) == 1 and all(member.is_served for member in self.members)
        self._constants: NormParts | None = None
        for slot in range(BASE, num_slots):
            self.clear(slot)

    def _groups(self) -> Iterator[_Group]:
        at = 0
        starts = accumulate((len(m.rows) for m in self.members), initial=0)
        placed = [(self.pair.rows(m.rows) if m.is_served else None, m, start) for m, start in zip(self.members, starts)]
        for B, several in groupby(placed, key=lambda one: one[0]):
            if B is not None:
                group = _Group.of(B, list(self._parts(at, [(m, start) for _, m, start in several])))
                yield group
                at = group.g.stop

    def _parts(self, at: int, members: Sequence[tuple[PackedMember, int]]) -> Iterator[_Part]:
        """Members of equally many rows, whose numbers begin at a place of the table's rows."""
        num, size, rank = len(members), len(members[0][0].rows), self.pair.rank
        gains = at + num * (rank + size)
        for i, (member, start) in enumerate(members):
            d, b, g = at + i * rank, at + num * rank + i * size, gains + i * size * self.has_gain
            g_end = g + size * self.has_gain
            yield _Part(member, slice(start, start + size), slice(d, d + rank), slice(b, b + size), slice(g, g_end))

    @property
    def slot_bytes(self) -> int:
        """What one slot takes in this layer."""
        return self.table.shape[1] * self.table.element_size()

    def clear(self, slot: int) -> None:
        """Makes a slot the bare base."""
        row = self.table[slot - BASE]
        row.zero_()
        for group in self.groups:
            row[group.g] = 1

    def put(self, slot: int, given: Sequence[SiteVectors | None], constants: Constants) -> None:
        """Puts an adapter's vectors, one entry for each member, into a slot; a member without any is the bare base."""
        self.clear(slot)
        vectors = {m.name: v for m, v in zip(self.members, given, strict=True)}
        for group in self.groups:
            for part in group.parts:
                v = vectors[part.member.name]
                if v is not None:
                    self._put(self.table[slot - BASE], group.B, part, v, constants)

    def _put(self, row: Tensor, B: Piece, part: _Part, v: SiteVectors, constants: Constants) -> None:
        row[part.d][: len(v.d)] = v.d.to(row)
        row[part.b] = v.b[part.member.rows].to(row)
        if v.m is not None:
            row[part.g] = (v.m[part.member.rows].to(row.device) / self._norm(B, part, v, constants)).to(row)

    def _norm(self, B: Piece, part: _Part, v: SiteVectors, constants: Constants) -> Tensor:
        """‖W + ΔW‖ of the rows computed here, in fp32."""
        if self._constants is None:
            self._constants = constants(self.A.weight)
        all_parts, rank = self._constants, len(v.d)
        here = NormParts(all_parts.square[part.output], all_parts.WA[part.output, :rank], all_parts.AA[:rank, :rank])
        device = B.weight.device
        b = v.b[part.member.rows].to(device)
        return factored_row_norm(here, Vectors(B.weight[:, :rank].float(), v.d.to(device), b))

    def add(self, output: Tensor, x: Tensor, lines: Tensor, bias: Tensor | None) -> None:
        """Adds every token's delta to output (tokens, out), in place, and multiplies by its gain.

        x (tokens, in), lines (tokens,) of the table, which are slot - BASE. bias: what the output holds of it.
        """
        if not self.groups:
            return
        u = self.A.product(x)
        rows = self.table.index_select(0, lines)  # half the time of table[lines]
        vectors = iter(rows.split_with_sizes(self._widths, 1))
        for group, d, b, g in zip(self.groups, vectors, vectors, vectors, strict=True):
            y = output if self._is_one else output[:, group.output]
            w = group.B.product(group.scaled(u, d))
            y.addcmul_(w if len(group.parts) == 1 else w.reshape(y.shape), b)
            if self.has_gain:
                y.mul_(g)
                if bias is not None:
                    y.addcmul_(1 - g, bias[group.output])
