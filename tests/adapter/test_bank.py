import copy

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import add_bank, banks_of, eject, extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import BasisError, LayoutError, SlotError

every = pytest.mark.parametrize("name", METHODS)


def out(model: nn.Module, ids: Tensor, slots: object) -> Tensor:
    with torch.no_grad(), route(slots):
        return model(ids).logits


def trained(model: nn.Module, spec: AdapterSpec, scramble, seed: int = 0) -> Adapter:
    bank = inject(model, spec)
    scramble(bank, seed)
    adapter = extract(bank, bank.first, model)
    eject(model)
    return adapter


@every
def test_a_slot_gives_back_the_bits_that_were_put(small_llama: nn.Module, scramble, name: str) -> None:
    spec = AdapterSpec(name, rank=3, targets="all-linear")
    adapter = trained(small_llama, spec, scramble)
    bank = add_bank(small_llama, adapter.layout, 3, adapter.basis())
    bank.put(2, adapter)
    assert torch.equal(bank.take(2), adapter.flat)
    for key, tensor in adapter.tensors.items():
        site, _, letter = key.rpartition(".")
        assert torch.equal(getattr(bank.layers[site], letter)[1], tensor)


@every
def test_putting_one_adapter_changes_no_other(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    spec = AdapterSpec(name, rank=3)
    a, b, c = (trained(small_llama, spec, scramble, seed) for seed in range(3))
    (slot,) = load(small_llama, a)
    before = out(small_llama, ids, slot)
    bank = add_bank(small_llama, a.layout, 2, a.basis())
    bank.put(2, b)
    bank.put(3, c)
    assert torch.equal(out(small_llama, ids, slot), before)
    second = out(small_llama, ids, 2)
    bank.put(3, b)
    assert torch.equal(out(small_llama, ids, 3), second)
    bank.put(2, c)
    assert not torch.equal(out(small_llama, ids, 2), second)


@every
def test_a_moved_or_copied_model_still_takes_adapters(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    spec = AdapterSpec(name, rank=3)
    a, b = (trained(small_llama, spec, scramble, seed) for seed in range(2))
    load(small_llama, a)
    expected = out(small_llama, ids, 1)
    twin = copy.deepcopy(small_llama)
    for bank in banks_of(twin):
        bank.put(1, b)
    assert torch.equal(out(small_llama, ids, 1), expected) and not torch.equal(out(twin, ids, 1), expected)
    moved = copy.deepcopy(small_llama).double().float()  # parameters get storages of their own
    banks_of(moved)[0].put(1, b)
    assert torch.equal(out(moved, ids, 1), out(twin, ids, 1))
    assert torch.equal(banks_of(moved)[0].take(1), b.flat)


def test_an_adapter_of_another_layout_is_refused_and_nothing_changes(small_llama: nn.Module, scramble) -> None:
    a = trained(small_llama, AdapterSpec("vera", rank=3), scramble)
    bank = add_bank(small_llama, a.layout, 1, a.basis())
    bank.put(1, a)
    for other in (AdapterSpec("vera", rank=4), AdapterSpec("vera", rank=3, seed=1), AdapterSpec("lora", rank=3)):
        eject(small_llama)
        with pytest.raises(LayoutError, match="a bank of its own"):
            bank.put(1, trained(small_llama, other, scramble))
    assert torch.equal(bank.take(1), a.flat)


def test_another_basis_is_refused(small_llama: nn.Module, scramble) -> None:
    a = trained(small_llama, AdapterSpec("vera", rank=3), scramble)
    forged = Adapter(a.spec, a.layout, a.flat, basis_sha256="0" * 64)
    with pytest.raises(BasisError, match="trained on 000000000000"):
        load(small_llama, forged)
    bank = add_bank(small_llama, a.layout, 1, a.basis())
    with pytest.raises(BasisError, match="not applied"):
        bank.put(1, forged)


def test_slots_of_another_bank_are_refused(small_llama: nn.Module, scramble) -> None:
    a = trained(small_llama, AdapterSpec("vera", rank=3), scramble)
    bank = add_bank(small_llama, a.layout, 2, a.basis())
    for slot in (0, 3, -1):
        with pytest.raises(SlotError, match="whose slots are 1 to 2"):
            bank.put(slot, a)
    with pytest.raises(SlotError, match="slot 1 holds no adapter"):
        bank.take(1)
    with pytest.raises(SlotError, match="at least one slot"):
        add_bank(small_llama, a.layout, 0, a.basis())


@every
def test_a_slot_is_one_row_of_memory(small_llama: nn.Module, name: str) -> None:
    bank = inject(small_llama, AdapterSpec(name, rank=3), 5)
    assert bank.flat.shape == (5, bank.layout.num_params)
    own = {p.untyped_storage().data_ptr() for layer in bank.layers.values() for p in layer.parameters()}
    assert own == {bank.flat.untyped_storage().data_ptr()}


def test_the_basis_is_one_storage_however_many_adapters(small_llama: nn.Module, scramble) -> None:
    adapters = [trained(small_llama, AdapterSpec("vera", rank=3), scramble, seed) for seed in range(4)]
    model = small_llama.bfloat16()
    load(model, adapters, check_base=False)
    load(model, adapters, check_base=False)
    assert len({id(bank.basis) for bank in banks_of(model)}) == 1
    assert not any(name.endswith((".A", ".B")) for name in model.state_dict())


def test_a_head_is_stored_with_the_adapter_and_routed_by_row(small_bert: nn.Module, ids: Tensor, scramble) -> None:
    bare = out(small_bert, ids, 0)
    spec = AdapterSpec("vera", rank=3, head=("classifier",))
    adapters = [trained(small_bert, spec, scramble, seed) for seed in range(2)]
    assert adapters[0].layout.num_head_params == 3 * 32 + 3
    assert {"classifier.weight", "classifier.bias"} < set(adapters[0].tensors)
    slots = load(small_bert, adapters)
    alone = [out(small_bert, ids, slot) for slot in slots]
    mixed = out(small_bert, ids, [slots[1], 0, slots[0], slots[1]])
    assert torch.equal(mixed[1], bare[1])
    for row, one in ((0, alone[1]), (2, alone[0]), (3, alone[1])):
        assert torch.allclose(mixed[row], one[row], atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


@every
def test_adapters_loaded_one_by_one_share_a_bank_that_grows(
    small_llama: nn.Module, ids: Tensor, scramble, name: str
) -> None:
    spec = AdapterSpec(name, rank=3)
    adapters = [trained(small_llama, spec, scramble, seed) for seed in range(5)]
    alone = []
    for adapter in adapters:
        load(small_llama, adapter)
        alone.append(out(small_llama, ids, 1))
        eject(small_llama)
    slots = [load(small_llama, adapter)[0] for adapter in adapters]
    assert len(set(slots)) == 5 and len(banks_of(small_llama)) == 1
    for slot, expected in zip(slots, alone, strict=True):
        assert torch.equal(out(small_llama, ids, slot), expected)
    bank = banks_of(small_llama)[0]
    bank.clear(slots[2])
    assert load(small_llama, adapters[0]) == [slots[2]]
    with pytest.raises(SlotError, match="does not grow"):
        inject(small_llama, spec).free_slot()


@pytest.mark.parametrize("method", METHODS)
def test_banks_layers_and_adapters_say_method_rank_slots_and_bytes(small_llama: nn.Module, method: str) -> None:
    bank = inject(small_llama, AdapterSpec(method, rank=4), 3)
    adapter = extract(bank, bank.first)
    num_bytes = 4 * adapter.num_params
    said = bank.summary()
    assert f"{method}, rank 4, {len(bank.layers)} layers, 3 of 3 slots used, {num_bytes:,} bytes a slot" in said
    assert repr(bank) == f"Bank({said})" and repr(adapter).startswith(f"Adapter({method}, rank 4, ")
    assert f"{num_bytes:,} bytes" in repr(adapter) and len(repr(adapter)) < 120
    shares = [repr(layer) for layer in bank.layers.values()]
    assert all(f"{method}, rank 4, 3 slots, " in share and " bytes" in share for share in shares)
    bank.clear(bank.first)
    assert "2 of 3 slots used" in bank.summary()
