"""Which slot each row of a batch uses, set in one place for the time of one forward.

with route(3): model(...)              # every row uses slot 3
with route([3, 0, 7]): model(...)      # a mixed batch; slot 0 is the bare base model
with route("cafe/tickets"): model(...) # the adapter that was loaded under that name
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from polyvera.adapter.bank_state import BankState
from polyvera.adapter.pinned_memory import to_device
from polyvera.adapter.slot_table import BASE_SLOT, SlotTable, distinct
from polyvera.errors import SlotError

Slots = int | Sequence[int] | Tensor
Named = str | Sequence[int | str]


@dataclass(eq=False)
class Pick:
    """The rows of one batch as one bank sees them.

    slot: the bank's own index where all rows use the same one. rows: else the index of each row, 0 where mask is 0.
    index: the index of each row on its device, -1 for other banks', where the route is never read on the host.
    mask: 1 for the rows that are this bank's, 0 for all others, None where all are. shape: of the slots named.
    is_once: whether one forward is all that it is for.
    """

    slot: int | None
    rows: Tensor
    mask: Tensor | None
    shape: torch.Size | None
    is_once: bool = False
    index: Tensor | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    def over(self, x: Tensor, is_ordered: bool = True) -> Pick:
        """The pick of the rows of x (rows, ..., features): this one, or each slot once for every token of its row.

        x (rows x tokens, features) is a batch whose first axes are one. is_ordered: whether x has all tokens of the
        batch in its order. Raises SlotError where there isn't one slot for each row.
        """
        if self.shape is None:
            return self
        if not is_ordered:
            raise SlotError(
                "this layer gets the tokens that a router chose, and no rows that several slots could be told for: use "
                "one slot for the whole batch, or merge the adapter"
            )
        if self.shape == x.shape[: len(self.shape)]:
            return self
        tokens, left = divmod(len(x), max(1, self.shape.numel()))
        if x.dim() != 2 or left or not tokens:
            raise SlotError(
                f"route() names slots for {tuple(self.shape)} rows, but this layer got an input of shape "
                f"{tuple(x.shape)}; give one slot for each row of the batch"
            )
        if ("tokens", tokens) not in self.cache:
            self.cache["tokens", tokens] = self._of_tokens(tokens)
        return self.cache["tokens", tokens]  # type: ignore[no-any-return]

    def _of_tokens(self, tokens: int) -> Pick:
        rows, mask, index = (
            None if t is None else t.flatten().repeat_interleave(tokens) for t in (self.rows, self.mask, self.index)
        )
        assert rows is not None
        return Pick(None, rows, mask, rows.shape, self.is_once, index)

    def local(self, device: torch.device) -> Tensor:
        """The index of each row there, -1 for a row that is not this bank's; moved once, without waiting for it."""
        if self.index is not None:
            return self.index
        if ("local", device) not in self.cache:
            rows = self.rows if self.mask is None else torch.where(self.mask > 0, self.rows, -1)
            self.cache["local", device] = to_device(rows, device)
        return self.cache["local", device]  # type: ignore[no-any-return]

    def groups_on(self, device: torch.device) -> tuple[list[tuple[int, Tensor]], Tensor]:
        """groups and others with their row numbers there."""
        if ("groups", device) not in self.cache:
            there = [(i, to_device(rows, device)) for i, rows in self.groups]
            self.cache["groups", device] = there, to_device(self.others, device)
        return self.cache["groups", device]  # type: ignore[no-any-return]

    @cached_property
    def used(self) -> list[int]:
        """The indices that rows use, each once, ascending."""
        return distinct(self.rows)

    def positions(self, device: torch.device) -> Tensor:
        """Where `used` lists each row's index."""
        if ("positions", device) not in self.cache:
            self.cache["positions", device] = to_device(torch.searchsorted(torch.tensor(self.used), self.rows), device)
        return self.cache["positions", device]  # type: ignore[no-any-return]

    @cached_property
    def groups(self) -> list[tuple[int, Tensor]]:
        """(index, the row numbers that use it), for factors that a batch can't share."""
        mine = self.rows if self.mask is None else torch.where(self.mask > 0, self.rows, -1)
        return [(int(i), (mine.flatten() == i).nonzero()[:, 0]) for i in distinct(mine) if i >= 0]

    @cached_property
    def others(self) -> Tensor:
        """The row numbers that are not this bank's."""
        return torch.empty(0, dtype=torch.long) if self.mask is None else (self.mask.flatten() == 0).nonzero()[:, 0]

    def gather(self, stack: Tensor, like: Tensor, rows: Tensor | None = None) -> Tensor:
        """stack[rows] with axes added so that it broadcasts over the tokens of `like` (rows, ..., features)."""
        if rows is None:
            key = ("rows", stack.device, torch.is_inference_mode_enabled())
            if key not in self.cache:
                self.cache[key] = to_device(self.rows, stack.device)
            rows = self.cache[key]
        between = (1,) * (like.dim() - 1 - rows.dim())
        picked = stack.index_select(0, rows.flatten())  # a third of the time of stack[rows]
        return picked.view(*rows.shape, *between, *stack.shape[1:])

    def gather_mask(self, like: Tensor) -> Tensor:
        """The mask with axes added so that it broadcasts over `like` (rows, ..., features)."""
        assert self.mask is not None
        if ("mask", like.device) not in self.cache:
            self.cache["mask", like.device] = to_device(self.mask, like.device)
        mask: Tensor = self.cache["mask", like.device]
        return mask.view(*mask.shape, *(1,) * (like.dim() - mask.dim()))


def tokens_of(pick: Pick, x: Tensor) -> Tensor:
    """The index of each token of x (..., features) in the pick's bank, -1 for those of others: x.shape[:-1]."""
    pick = pick.over(x)
    if pick.slot is not None:
        return torch.full(x.shape[:-1], pick.slot, device=x.device)
    rows = pick.local(x.device)
    return rows.view(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim())).expand(x.shape[:-1]).contiguous()


class Route:
    """The slots of one batch, checked once for each model that it passes through.

    held: the caller vouches that nobody writes these slots while the route lives, so that what was gathered for one
    forward serves the next ones too, though other slots change between them. once: nothing gathered is kept.
    """

    def __init__(self, slots: Slots, held: bool = False, once: bool = False) -> None:
        self.is_held, self.is_once, self.is_on_device = held, once, False
        self.banks: Collection[BankState] | None = None
        self.shape: torch.Size | None = None
        self.slots: int | Tensor
        if isinstance(slots, int):
            self.slots = slots
        else:
            several = torch.as_tensor(slots, dtype=torch.long).cpu()
            numbers = distinct(several)
            is_one = len(numbers) == 1  # which is as good as no list
            self.shape, self.slots = (None, numbers[0]) if is_one else (several.shape, several)
        self._picks: dict[int, tuple[int, Pick | None]] = {}

    @classmethod
    def on_device(cls, slots: Tensor, banks: Collection[BankState] | None = None) -> Route:
        """The route of a buffer that the host never reads: what a captured CUDA graph or a scheduler on the GPU wants.

        slots: integers on the device of the model, one for each row of the batch (the leading axes of what the layers
        get, as in Route(tensor)); 0 is the base. Contract:

        - Slots are not checked: one that holds no adapter, or does not exist, is undefined behaviour.
        - The buffer is read on the device once after each `with route(...)`, at the first adapted layer of each bank.
          So enter the route inside what is captured, and copy new slots into the buffer before each replay. The same
          Route may be entered again and again.
        - Before a capture run one forward under the route (torch wants a warm-up in any case): it moves the table of
          slots and the norms to the device. put(), clear() and settle() of a bank that doesn't train are seen by
          later replays. Adding a bank, growing one or moving the model is not: capture again.
        - Each of `banks`, the only ones that rows may use, is computed in every forward, whether a row uses it or not;
          rows of others pass through bit for bit. None is all banks of the model.
        - Heads are not routed so: they raise SlotError.
        """
        made = cls(BASE_SLOT)
        made.is_on_device, made.shape, made.slots, made.banks = True, slots.shape, slots, banks
        return made

    def entered(self) -> None:
        """Says that a new forward begins, for which a buffer on the device is read again."""
        if self.is_on_device:
            self._picks.clear()

    def local(self, bank: BankState, table: SlotTable, x: Tensor) -> Tensor:
        """The index of each token of x (..., features), -1 for those that are not the bank's; x.shape[:-1]."""
        found = self.pick(bank, table)
        if found is None:
            return torch.full(x.shape[:-1], -1, device=x.device)
        return tokens_of(found, x)

    def pick(self, bank: BankState, table: SlotTable) -> Pick | None:
        """How this batch uses the bank, or None where no row does. Raises SlotError for a slot that isn't there."""
        if self.is_on_device:
            return self._pick_on_device(bank, table)
        known = self._picks.get(id(bank))
        if known is None or not (self.is_held or known[0] == bank.version):
            table.check(self.slots)
            known = self._picks[id(bank)] = (bank.version, self._pick(bank, table))
        return known[1]

    def _pick_on_device(self, bank: BankState, table: SlotTable) -> Pick | None:
        if self.banks is not None and bank not in self.banks:
            return None
        if id(bank) not in self._picks:
            assert isinstance(self.slots, Tensor)
            index = table.lookup(bank, self.slots.device).index_select(0, self.slots.flatten()).view(self.slots.shape)
            self._picks[id(bank)] = (bank.version, Pick(None, index, None, self.shape, index=index))
        return self._picks[id(bank)][1]

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

    def entered(self) -> None:
        """Nothing: names are looked up on the host."""

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
    chosen.entered()
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
