"""Which slot each row of a batch uses, set in one place for the time of one forward.

with route(3): model(...)              # every row uses slot 3
with route([3, 0, 7]): model(...)      # a mixed batch; slot 0 is the bare base model
with route("cafe/tickets"): model(...) # the adapter that was loaded under that name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from polyvera.adapter.bank_state import BankState
from polyvera.adapter.slot_table import SlotTable, distinct
from polyvera.errors import SlotError

Slots = int | Sequence[int] | Tensor
Named = str | Sequence[int | str]


@dataclass(eq=False)
class Pick:
    """The rows of one batch as one bank sees them.

    slot: the bank's own index where all rows use the same one. rows: else the index of each row, 0 where mask is 0.
    mask: 1 for the rows that are this bank's, 0 for all others, None where all are. shape: of the slots named.
    is_once: whether one forward is all that it is for.
    """

    slot: int | None
    rows: Tensor
    mask: Tensor | None
    shape: torch.Size | None
    is_once: bool = False
    cache: dict[Any, Any] = field(default_factory=dict)

    def check(self, x: Tensor) -> None:
        """Raises SlotError where there isn't one slot for each row of x (rows, ..., features)."""
        if self.shape is not None and self.shape != x.shape[: len(self.shape)]:
            raise SlotError(
                f"route() names slots for {tuple(self.shape)} rows, but this layer got an input of shape "
                f"{tuple(x.shape)}; give one slot for each row of the batch"
            )

    @cached_property
    def groups(self) -> list[tuple[int, Tensor]]:
        """(index, the row numbers that use it), for factors that a batch can't share."""
        mine = self.rows if self.mask is None else torch.where(self.mask > 0, self.rows, -1)
        return [(int(i), (mine.flatten() == i).nonzero()[:, 0]) for i in distinct(mine) if i >= 0]

    @cached_property
    def others(self) -> Tensor:
        """The row numbers that are not this bank's."""
        return torch.empty(0, dtype=torch.long) if self.mask is None else (self.mask.flatten() == 0).nonzero()[:, 0]

    def on(self, device: torch.device) -> Tensor:
        """`rows` on a device, moved there once."""
        key = (device, torch.is_inference_mode_enabled())
        if key not in self.cache:
            self.cache[key] = self.rows.to(device, non_blocking=True)
        found: Tensor = self.cache[key]
        return found

    def gather(self, stack: Tensor, like: Tensor) -> Tensor:
        """stack[rows] with axes added so that it broadcasts over the tokens of `like` (rows, ..., features)."""
        rows = self.on(stack.device)
        between = (1,) * (like.dim() - 1 - rows.dim())
        picked = stack.index_select(0, rows.flatten())  # a third of the time of stack[rows]
        return picked.view(*rows.shape, *between, *stack.shape[1:])

    def gather_mask(self, like: Tensor) -> Tensor:
        """The mask with axes added so that it broadcasts over `like` (rows, ..., features)."""
        assert self.mask is not None
        return self.mask.to(like.device).view(*self.mask.shape, *(1,) * (like.dim() - self.mask.dim()))


class Route:
    """The slots of one batch, checked once for each model that it passes through.

    held: the caller vouches that nobody writes these slots while the route lives, so that what was gathered for one
    forward serves the next ones too, though other slots change between them. once: nothing gathered is kept.
    """

    def __init__(self, slots: Slots, held: bool = False, once: bool = False) -> None:
        self.is_held, self.is_once = held, once
        self.shape: torch.Size | None = None
        self.slots: int | Tensor
        if isinstance(slots, int):
            self.slots = slots
        else:
            several = torch.as_tensor(slots, dtype=torch.long).cpu()
            numbers = distinct(several)
            self.shape, self.slots = several.shape, numbers[0] if len(numbers) == 1 else several
        self._picks: dict[int, tuple[int, Pick | None]] = {}

    def pick(self, bank: BankState, table: SlotTable) -> Pick | None:
        """How this batch uses the bank, or None where no row does. Raises SlotError for a slot that isn't there."""
        known = self._picks.get(id(bank))
        if known is None or not (self.is_held or known[0] == bank.version):
            table.check(self.slots)
            known = self._picks[id(bank)] = (bank.version, self._pick(bank, table))
        return known[1]

    def _pick(self, bank: BankState, table: SlotTable) -> Pick | None:
        if isinstance(self.slots, int):
            index = table.index(self.slots, bank)
            return None if index is None else Pick(index, torch.tensor([index]), None, self.shape, self.is_once)
        rows = table.lookup(bank)[self.slots]
        mine = rows >= 0
        if not bool(mine.any()):
            return None
        mask = None if bool(mine.all()) else mine.float()
        return Pick(None, rows.clamp(min=0), mask, self.shape, self.is_once)


class NamedRoute:
    """Slots by the names that adapters were loaded under, which each model that a forward passes through knows."""

    def __init__(self, names: Named) -> None:
        self.names = names
        self._known: dict[int, tuple[Mapping[str, int], Route]] = {}

    def of(self, table: SlotTable) -> Route:
        """The route in one model. Raises SlotError for a name under which nothing was loaded."""
        known = self._known.get(id(table))
        if known is None or known[0] is not table.names:
            known = self._known[id(table)] = (table.names, Route(numbered(self.names, table)))
        return known[1]


def numbered(slots: Slots | Named, table: SlotTable) -> Slots:
    """The slots by number. Raises SlotError as SlotTable.slot_named()."""
    if isinstance(slots, Tensor):
        return slots
    return table.slot_named(slots) if isinstance(slots, int | str) else [table.slot_named(one) for one in slots]


def is_named(slots: Slots | Named) -> bool:
    """Whether any of the slots is a name."""
    several = () if isinstance(slots, int | Tensor) else (slots,) if isinstance(slots, str) else slots
    return any(isinstance(one, str) for one in several)


_ROUTE: ContextVar[Route | NamedRoute | None] = ContextVar("polyvera_route", default=None)


@contextmanager
def route(slots: Slots | Named | Route | NamedRoute) -> Iterator[Route | NamedRoute]:
    """Sets the slot of every row for the forwards inside.

    slots: a slot for all rows; or (rows,), one for each row of the batch; a slot is a number as load() returned it, 0
        for the bare base model, or the name that an adapter was loaded under.

    The forward raises SlotError for a slot that holds no adapter, a name that is not there, and another number of slots
    than rows.
    """
    chosen = _route_of(slots)
    token = _ROUTE.set(chosen)
    try:
        yield chosen
    finally:
        _ROUTE.reset(token)


def _route_of(slots: Slots | Named | Route | NamedRoute) -> Route | NamedRoute:
    if isinstance(slots, Route | NamedRoute):
        return slots
    return NamedRoute(slots) if is_named(slots) else Route(slots)  # type: ignore[arg-type]


def current_route(table: SlotTable) -> Route:
    """The route in force, or the model's default. Raises SlotError where that is not one adapter."""
    chosen = _ROUTE.get()
    if chosen is None:
        return _default(table)
    return chosen.of(table) if isinstance(chosen, NamedRoute) else chosen


def _default(table: SlotTable) -> Route:
    state = tuple(bank.version for bank in table.banks)
    if table.default is None or table.default[0] != state:
        table.default = (state, Route(table.only()))
    chosen: Route = table.default[1]
    return chosen


def checkpoint_context() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For torch.utils.checkpoint's context_fn: the recomputation takes the route of the forward, in any thread."""
    chosen = _ROUTE.get()
    return nullcontext(), nullcontext() if chosen is None else route(chosen)
