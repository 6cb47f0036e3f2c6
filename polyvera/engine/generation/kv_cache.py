"""KVCache: the keys and values of every running request, one row each, and copies of prefixes to begin from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyvera.adapter.lazy_zeros import zeros

Pairs = list[tuple[Tensor, Tensor]]
# Shorter prefixes are computed faster than they are found and copied.
MIN_PREFIX = 32


class KVCache:
    """For each layer keys and values (num_rows, context, key heads, width); memory is taken as rows fill.

    It stands where transformers expects a cache: update() writes the step's tokens to `slot_mapping` (T,), which are
    row * context + position, and hands out the whole storage, of which the attention reads its spans. The last place of
    a row is never filled, since an answer's last token is not read: rows that only pad a batch write to that of row 0.
    """

    def __init__(self, num_rows: int, context: int) -> None:
        self.num_rows, self.context = num_rows, context
        self.slot_mapping = torch.empty(0, dtype=torch.long)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def token_bytes(self) -> int:
        """What one token takes in all layers; 0 before the first forward."""
        pairs = self._layers.values()
        return sum(t[0, 0].numel() * t.element_size() for pair in pairs for t in pair)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """keys, values (1, key heads, T, width) -> both storages."""
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._storage(keys), self._storage(values))
        stored = self._layers[layer_idx]
        for storage, new in zip(stored, (keys, values), strict=True):
            storage.flatten(0, 1).index_copy_(0, self.slot_mapping, new[0].transpose(0, 1))
        return stored

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are given with every forward."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """0: the mask knows the positions."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, their offset), which the mask does not read."""
        return query_length, 0

    def read(self, row: int, length: int) -> Pairs:
        """Copies of a row's first tokens, for each layer (length, key heads, width)."""
        return [(k[row, :length].clone(), v[row, :length].clone()) for k, v in self._layers.values()]

    def write(self, row: int, pairs: Pairs, start: int, stop: int) -> None:
        """Copies tokens [start, stop) of such copies to where they were, in any row."""
        for (k, v), (keys, values) in zip(self._layers.values(), pairs, strict=True):
            k[row, start:stop], v[row, start:stop] = keys[start:stop], values[start:stop]

    def clear(self, row: int, length: int) -> None:
        """Zeroes a row: no number of one request is left where another's masked rows lie."""
        for stored in self._layers.values():
            for storage in stored:
                storage[row, :length].zero_()

    def _storage(self, like: Tensor) -> Tensor:
        shape = (self.num_rows, self.context, like.shape[1], like.shape[3])
        return zeros(shape, device=like.device, dtype=like.dtype, sparse=True)


@dataclass(eq=False, slots=True)
class Prefix:
    """A computed prefix: its tokens, and its keys and values."""

    tokens: NDArray[np.int64]
    pairs: Pairs

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.pairs for t in pair)


class PrefixCache:
    """The latest prefixes, at most max_bytes of them, each found only by the owner under which it was kept.

    An owner is a tenant and an adapter version: keys and values depend on the adapter, and who asked what is private.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._kept: dict[Hashable, list[Prefix]] = {}
        self._order: OrderedDict[int, tuple[Hashable, Prefix]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def longest(self, owner: Hashable, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
        """The prefix that shares the most first tokens with a prompt, and how many; the prompt's last never counts."""
        asked = np.asarray(tokens[:-1], dtype=np.int64)
        shared = [(_num_shared(kept.tokens, asked), kept) for kept in self._kept.get(owner, ())]
        length, found = max(shared, key=lambda pair: pair[0], default=(0, None))
        if found is None or length < MIN_PREFIX:
            return None, 0
        self._order.move_to_end(id(found))
        return found, length

    def wants(self, owner: Hashable, tokens: Sequence[int], token_bytes: int) -> bool:
        """Whether such a prefix would be worth a copy: long enough, small enough, and not there yet."""
        if len(tokens) < MIN_PREFIX or not 0 < len(tokens) * token_bytes <= self.max_bytes:
            return False
        asked = np.asarray(tokens, dtype=np.int64)
        return all(_num_shared(kept.tokens, asked) < len(asked) for kept in self._kept.get(owner, ()))

    def keep(self, owner: Hashable, tokens: Sequence[int], pairs: Pairs) -> None:
        """Adds a prefix in place of those that it continues; the longest unused ones go where memory ends."""
        added = Prefix(np.asarray(tokens, dtype=np.int64), pairs)
        for old in list(self._kept.get(owner, ())):
            if _num_shared(old.tokens, added.tokens) == len(old.tokens):
                self._drop(id(old))
        self._kept.setdefault(owner, []).append(added)
        self._order[id(added)] = (owner, added)
        self.num_bytes += added.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._order)))

    def _drop(self, number: int) -> None:
        owner, old = self._order.pop(number)
        self.num_bytes -= old.num_bytes
        self._kept[owner].remove(old)
        if not self._kept[owner]:
            del self._kept[owner]


def _num_shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
