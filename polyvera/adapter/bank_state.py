"""BankState: what a layer, a route and the slot table ask of a bank."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from polyvera.adapter.basis import Basis
from polyvera.adapter.layout import Layout
from polyvera.adapter.spec import AdapterSpec


class BankState(Protocol):
    """The bank's layout, basis and dtype, the spec of each slot, and counters of what was written.

    product_dtype: of the products with A and B, None for the rule of `LayerBank`. position: among the model's banks.
    occupied: the indices that hold an adapter. version: changes at every write, of any slot.
    """

    layout: Layout
    basis: Basis | None
    dtype: torch.dtype
    dropout: float
    product_dtype: torch.dtype | None
    trainable: bool
    position: int
    occupied: set[int]
    version: int

    @property
    def num_slots(self) -> int:
        """How many slots this bank has."""
        ...

    def spec_of(self, index: int) -> AdapterSpec:
        """The spec of the adapter in a slot, by the bank's own index."""
        ...

    @property
    def table_number(self) -> int:
        """The number of the model's slot table."""
        ...

    def norm_rows(self, site: str) -> Tensor:
        """row_norm of every slot in one layer, (slots, out)."""
        ...

    def written(self, index: int) -> int:
        """A number that changes whenever that slot is written."""
        ...
