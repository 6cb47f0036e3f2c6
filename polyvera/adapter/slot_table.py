"""SlotTable: the slot numbers of one model, and which bank each belongs to."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from polyvera.adapter.bank_state import BankState
from polyvera.errors import SlotError, did_you_mean

BASE_SLOT = 0
CPU = torch.device("cpu")


class SlotTable:
    """The slot numbers of one model: 0 is the base, then every bank's slots in the order in which they were added."""

    def __init__(self) -> None:
        self.banks: list[BankState] = []
        self._owners: list[tuple[BankState, int]] = []
        self._lookups: dict[tuple[int, torch.device], Tensor] = {}
        self.number = _register(self)
        self.names: dict[str, int] = {}  # the slots of adapters that were loaded under a name
        self.default: tuple[object, Any] | None = None  # the route of a forward outside `with route(...)`, and for what

    @property
    def occupied(self) -> list[int]:
        """The slots that hold an adapter."""
        return [slot for slot, (bank, index) in enumerate(self._owners, 1) if index in bank.occupied]

    def add(self, bank: BankState, num_slots: int) -> range:
        """Gives a bank so many new slots; returns their numbers."""
        if bank not in self.banks:
            self.banks.append(bank)
        first, held = len(self._owners) + 1, sum(owner is bank for owner, _ in self._owners)
        self._owners += [(bank, held + i) for i in range(num_slots)]
        self._lookups.clear()
        return range(first, first + num_slots)

    def index(self, slot: int, bank: BankState) -> int | None:
        """The bank's own index of a slot, None where the slot is another's."""
        owner, index = self._owners[slot - 1] if 1 <= slot <= len(self._owners) else (None, 0)
        return index if owner is bank else None

    def lookup(self, bank: BankState, device: torch.device = CPU) -> Tensor:
        """The bank's own index of every slot of the model, -1 for those of others; (slots + 1,) on that device."""
        key = (id(bank), device)
        if key not in self._lookups:
            mine = [index if owner is bank else -1 for owner, index in self._owners]
            with torch.inference_mode(False):
                self._lookups[key] = torch.tensor([-1, *mine]).to(device)
        return self._lookups[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotTable:
        other = memo[id(self)] = SlotTable()
        other.banks, other._owners = copy.deepcopy((self.banks, self._owners), memo)
        other.names = dict(self.names)
        return other

    def check(self, slots: int | Tensor) -> None:
        """Raises SlotError unless every slot is the base or holds an adapter."""
        asked = {slots} if isinstance(slots, int) else set(distinct(slots))
        missing = sorted(s for s in asked if s != BASE_SLOT and self.holder(s) is None)
        if missing:
            raise SlotError(f"slot {missing[0]} holds no adapter; {self._shown()}, and slot 0 is the base model")

    def holder(self, slot: int) -> tuple[BankState, int] | None:
        """The bank of a slot and its index there, None for one that is empty or does not exist."""
        if not 1 <= slot <= len(self._owners):
            return None
        bank, index = self._owners[slot - 1]
        return (bank, index) if index in bank.occupied else None

    def call(self, slot: int, name: str | None) -> None:
        """Gives a slot a name, which no other slot has any longer, or takes its name away."""
        self.names = {known: other for known, other in self.names.items() if other != slot}
        if name is not None:
            self.names[name] = slot

    def slot_named(self, which: int | str) -> int:
        """The slot of a name; a number is its own. Raises SlotError for a name under which nothing was loaded."""
        if not isinstance(which, str):
            return which
        if which not in self.names:
            known = ", ".join(sorted(self.names)[:8]) or "none"
            near = did_you_mean(which, self.names)
            raise SlotError(f"no adapter is loaded under the name {which!r}{near}; the names are: {known}")
        return self.names[which]

    def only(self) -> int:
        """The only slot that holds an adapter, or the base's where none does. Raises SlotError where several do."""
        held = self.occupied
        if len(held) > 1:
            raise SlotError(f"{self._shown()}: say which to use, `with route(slot): model(...)`")
        return held[0] if held else BASE_SLOT

    def _shown(self) -> str:
        held = self.occupied
        listed = ", ".join(map(str, held[:8])) + (", ..." if len(held) > 8 else "")
        return f"this model holds {len(held)} adapters (slots {listed})" if held else "this model holds no adapter"


def distinct(rows: Tensor) -> list[int]:
    """The numbers in `rows`, each once, ascending."""
    return sorted(set(rows.flatten().tolist()))


# A compiled graph holds numbers, not Python objects: by its number an operation in the graph finds the table again.
_TABLES: WeakValueDictionary[int, SlotTable] = WeakValueDictionary()
_NUMBERS = count()


def _register(table: SlotTable) -> int:
    number = next(_NUMBERS)
    _TABLES[number] = table
    return number


def table_of(number: int) -> SlotTable:
    """The table of that number, of a model that still lives."""
    return _TABLES[number]
