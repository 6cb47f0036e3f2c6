"""The slot numbers of a model with several banks: each belongs to one bank, and 0 to none."""

import pytest
import torch

from polyvera.adapter.inject import inject, slot_table
from polyvera.adapter.slot_table import BASE_SLOT, distinct
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SlotError


@pytest.fixture
def two_banks(small_llama):
    """Slots 1 and 2 of one bank, 3 to 5 of another."""
    banks = [inject(small_llama, AdapterSpec(rank=rank), num) for rank, num in ((2, 2), (3, 3))]
    return slot_table(small_llama), banks


def test_every_slot_is_of_one_bank(two_banks):
    table, (one, other) = two_banks
    assert table.banks == [one, other] and table.occupied == [1, 2, 3, 4, 5]
    assert [table.index(slot, one) for slot in range(7)] == [None, 0, 1, None, None, None, None]
    assert [table.index(slot, other) for slot in range(7)] == [None, None, None, 0, 1, 2, None]
    for bank in (one, other):
        owned = [-1 if (i := table.index(slot, bank)) is None else i for slot in range(6)]
        assert table.lookup(bank).tolist() == owned
    assert table.holder(4) == (other, 1) and table.holder(BASE_SLOT) is None and table.holder(6) is None


def test_new_slots_of_an_old_bank_go_on_counting(two_banks):
    table, (one, other) = two_banks
    table.lookup(one), table.lookup(other)
    assert table.add(one, 2) == range(6, 8)
    assert [table.index(slot, one) for slot in (6, 7)] == [2, 3] and len(table.banks) == 2
    assert table.lookup(one).tolist() == [-1, 0, 1, -1, -1, -1, 2, 3]
    assert table.lookup(other).tolist() == [-1, -1, -1, 0, 1, 2, -1, -1]
    assert table.occupied == [1, 2, 3, 4, 5], "an added slot holds nothing yet"


def test_an_empty_slot_is_refused_by_its_number(two_banks):
    table, _ = two_banks
    table.check(0)
    table.check(torch.tensor([[5, 0], [1, 3]]))
    for slots in (6, torch.tensor([1, 6, 9]), torch.tensor([-1, 6])):
        missing = slots if isinstance(slots, int) else min(s for s in slots.tolist() if not 0 <= s <= 5)
        with pytest.raises(SlotError, match=rf"slot {missing} .*5 adapters \(slots 1, 2, 3, 4, 5\)"):
            table.check(slots)


def test_the_only_adapter_needs_no_choice(small_llama):
    table = slot_table(small_llama)
    assert table.only() == BASE_SLOT
    inject(small_llama, AdapterSpec(rank=2))
    assert slot_table(small_llama).only() == 1
    inject(small_llama, AdapterSpec(rank=3))
    with pytest.raises(SlotError, match="route"):
        slot_table(small_llama).only()


def test_distinct_numbers_are_ascending():
    assert distinct(torch.tensor([[3, 1], [1, 2]])) == [1, 2, 3]
