"""LayerSlots: the vectors of every resident adapter in one layer, and what they add to the layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from polyvera.adapter.equation import NormParts, Vectors, factored_row_norm
from polyvera.vllm.pair import SharedPair, product

# The constants of a row norm, asked for when the first magnitude comes: (A piece) -> (‖W‖², W Aᵀ, A Aᵀ).
Constants = Callable[[Tensor], NormParts]


@dataclass(frozen=True, slots=True)
class SiteVectors:
    """One adapter's vectors for one site, whole and in fp32: d (rank,), b (out,), m (out,) or None."""

    d: Tensor
    b: Tensor
    m: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """One site of a layer, which may pack several: the rows of it that are computed here, none of a site not served.

    out_features: of the whole site, over all tensor-parallel ranks. rows: (rows here,) whole numbers.
    """

    name: str
    out_features: int
    rows: Tensor
    is_served: bool = True


@dataclass(frozen=True, eq=False)
class _Part:
    """A member's B and where its output and its vectors lie: output, then d, b and g in a row of the table."""

    member: Member
    B: Tensor
    output: slice
    d: slice
    b: slice
    g: slice


class LayerSlots:
    """A table (slots + 1, numbers): d and b of every served member, and the gain g where magnitudes are served.

    The last row is the bare base, d = b = 0 and g = 1, and vLLM's index of a token without adapter is -1.
    """

    def __init__(
        self, pair: SharedPair, columns: Tensor, members: Sequence[Member], num_slots: int, has_gain: bool
    ) -> None:
        self.pair, self.members, self.has_gain = pair, tuple(members), has_gain
        self.A = pair.columns(columns)
        self.parts = tuple(self._parts())
        width = max((part.g.stop for part in self.parts), default=0)
        self.table = torch.zeros(num_slots + 1, width, dtype=pair.dtype, device=pair.device)
        self._constants: NormParts | None = None
        for slot in range(num_slots + 1):
            self.clear(slot)

    def _parts(self) -> list[_Part]:
        at, parts = 0, []
        starts = accumulate((len(m.rows) for m in self.members), initial=0)
        for member, start in zip(self.members, starts):
            if not member.is_served:
                continue
            size = len(member.rows)
            ends = list(accumulate((self.pair.rank, size, size if self.has_gain else 0), initial=at))
            d, b, g = (slice(first, last) for first, last in pairwise(ends))
            parts.append(_Part(member, self.pair.rows(member.rows), slice(start, start + size), d, b, g))
            at = ends[-1]
        return parts

    @property
    def slot_bytes(self) -> int:
        """What one slot takes in this layer."""
        return self.table.shape[1] * self.table.element_size()

    def clear(self, slot: int) -> None:
        """Makes a slot the bare base."""
        self.table[slot] = 0
        for part in self.parts:
            self.table[slot, part.g] = 1

    def put(self, slot: int, given: Sequence[SiteVectors | None], constants: Constants) -> None:
        """Puts an adapter's vectors, one entry for each member, into a slot; a member without any is the bare base."""
        self.clear(slot)
        vectors = {m.name: v for m, v in zip(self.members, given, strict=True)}
        for part in self.parts:
            v = vectors[part.member.name]
            if v is not None:
                self._put(slot, part, v, constants)

    def _put(self, slot: int, part: _Part, v: SiteVectors, constants: Constants) -> None:
        row = self.table[slot]
        row[part.d][: len(v.d)] = v.d.to(row)
        row[part.b] = v.b[part.member.rows].to(row)
        if v.m is not None:
            row[part.g] = (v.m[part.member.rows].to(row.device) / self._norm(part, v, constants)).to(row)

    def _norm(self, part: _Part, v: SiteVectors, constants: Constants) -> Tensor:
        """‖W + ΔW‖ of the rows computed here, in fp32."""
        if self._constants is None:
            self._constants = constants(self.A)
        all_parts, rank = self._constants, len(v.d)
        here = NormParts(all_parts.square[part.output], all_parts.WA[part.output, :rank], all_parts.AA[:rank, :rank])
        device = part.B.device
        b = v.b[part.member.rows].to(device)
        return factored_row_norm(here, Vectors(part.B[:, :rank].float(), v.d.to(device), b))

    def add(self, output: Tensor, x: Tensor, slots: Tensor, bias: Tensor | None) -> None:
        """Adds every token's delta to output (tokens, out), in place, and multiplies by its gain.

        x (tokens, in), slots (tokens,) with -1 for the base. bias: what the output holds of it, None without.
        """
        if not self.parts:
            return
        u, rows = product(x, self.A), self.table[slots]
        for part in self.parts:
            y = output[:, part.output]
            y.addcmul_(product(u * rows[:, part.d], part.B), rows[:, part.b])
            if self.has_gain:
                g = rows[:, part.g]
                y.mul_(g)
                if bias is not None:
                    y.addcmul_(1 - g, bias[part.output])
