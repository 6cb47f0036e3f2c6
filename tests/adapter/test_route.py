import threading

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import add_bank, banks_of, eject, extract, inject, load, slot_table
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import Route, checkpoint_context, route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SlotError

SPEC = AdapterSpec("vera", rank=4)


def out(model: nn.Module, ids: Tensor, slots: object) -> Tensor:
    with torch.no_grad(), route(slots):
        return model(ids).logits


@pytest.mark.parametrize("slots", [7, -1, [1, 2, 9, 0], [-2, 1, 1, 1]])
def test_a_slot_that_is_not_there_raises(small_llama: nn.Module, ids: Tensor, slots: object) -> None:
    inject(small_llama, SPEC, 2)
    with pytest.raises(SlotError, match=r"holds no adapter; this model holds 2 adapters \(slots 1, 2\)"):
        out(small_llama, ids, slots)


def test_an_empty_slot_raises_and_names_the_others(small_llama: nn.Module, ids: Tensor) -> None:
    bank = inject(small_llama, SPEC, 3)
    bank.clear(2)
    with pytest.raises(SlotError, match=r"slot 2 holds no adapter.*slots 1, 3"):
        out(small_llama, ids, [1, 2, 3, 0])


def test_a_wrong_number_of_rows_raises(small_llama: nn.Module, ids: Tensor) -> None:
    inject(small_llama, SPEC, 2)
    with pytest.raises(SlotError, match="slots for"):
        out(small_llama, ids, [1, 2])


def test_without_a_route_the_only_adapter_is_used_and_two_are_refused(
    small_llama: nn.Module, ids: Tensor, scramble
) -> None:
    with torch.no_grad():
        bare = small_llama(ids).logits
        bank = inject(small_llama, SPEC)
        scramble(bank)
        assert torch.equal(small_llama(ids).logits, out(small_llama, ids, 1))
        bank.clear(1)
        assert torch.equal(small_llama(ids).logits, bare)
        other = add_bank(small_llama, bank.layout, 2, bank.basis)
        other._write(0, torch.ones(bank.layout.num_params))
        other._write(1, torch.ones(bank.layout.num_params))
        with pytest.raises(SlotError, match="say which to use"):
            small_llama(ids)


def test_routes_nest_and_end(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, SPEC, 2))
    one, two = out(small_llama, ids, 1), out(small_llama, ids, 2)
    with torch.no_grad(), route(1):
        with route(2):
            assert torch.equal(small_llama(ids).logits, two)
        assert torch.equal(small_llama(ids).logits, one)
        with pytest.raises(ValueError, match="stop"), route(2):
            raise ValueError("stop")
        assert torch.equal(small_llama(ids).logits, one)


def test_threads_do_not_see_each_others_route(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, SPEC, 4))
    alone = {slot: out(small_llama, ids, slot) for slot in range(5)}
    wrong: list[int] = []

    def run(slot: int) -> None:
        for _ in range(20):
            if not torch.allclose(out(small_llama, ids, slot), alone[slot], atol=1e-6):
                wrong.append(slot)

    threads = [threading.Thread(target=run, args=(slot,)) for slot in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_token_may_have_a_slot_of_its_own(small_llama: nn.Module, scramble) -> None:
    bank = inject(small_llama, AdapterSpec("vera", rank=4, targets=("q_proj",)), 2)
    scramble(bank)
    name = next(iter(bank.layers))
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    slots = torch.tensor([[1, 1, 0, 2, 2, 1]])
    with torch.no_grad():
        with route(slots):
            packed = small_llama.get_submodule(name)(x)
        for i, slot in enumerate(slots[0].tolist()):
            with route(slot):
                assert torch.allclose(packed[:, i], small_llama.get_submodule(name)(x)[:, i], atol=1e-6)


def test_a_checkpoint_context_keeps_the_route_for_another_thread(small_llama: nn.Module) -> None:
    inject(small_llama, SPEC, 2)
    table = banks_of(small_llama)[0].table
    from polyvera.adapter.route import current_route

    with route(2):
        _, again = checkpoint_context()
    seen: list[object] = []

    def recompute() -> None:
        with again:
            seen.append(current_route(table).slots)

    thread = threading.Thread(target=recompute)
    thread.start()
    thread.join()
    assert seen == [2]


def trained(model: nn.Module, specs: list[AdapterSpec], scramble) -> list[Adapter]:
    found = []
    for i, spec in enumerate(specs):
        bank = inject(model, spec)
        scramble(bank, seed=i)
        found.append(extract(bank, bank.first))
        eject(model)
    return found


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_buffer_on_the_device_routes_as_its_numbers_do(
    small_llama: nn.Module, ids: Tensor, scramble, name: str, magnitude: bool
) -> None:
    """Several banks in one model, the buffer filled anew between forwards, slots written between them."""
    spec = AdapterSpec(name, rank=4, targets="all-linear", magnitude=magnitude)
    others = [AdapterSpec(rank=3, targets=("v_proj",)), AdapterSpec(name, rank=2, magnitude=magnitude)]
    adapters = trained(small_llama, [spec, spec, spec, *others], scramble)
    a, b, _, other, third = load(small_llama, adapters)
    buffer = torch.tensor([a, 0, other, b])
    chosen = Route.on_device(buffer)
    first, *_ = banks_of(small_llama)
    for slots in ([a, 0, other, b], [b, third, 0, 0], [other] * 4):
        for adapter in adapters[:2]:
            first.put(a, adapter)
            buffer.copy_(torch.tensor(slots))
            found, expected = out(small_llama, ids, chosen), out(small_llama, ids, slots)
            assert torch.allclose(found, expected, atol=1e-5)
            bare = torch.tensor(slots) == 0
            assert torch.equal(found[bare], out(small_llama, ids, 0)[bare])


@pytest.mark.parametrize("name", METHODS)
def test_a_buffer_on_the_device_trains_as_its_numbers_do(small_llama: nn.Module, ids: Tensor, scramble, name) -> None:
    scramble(inject(small_llama, AdapterSpec(name, rank=4, targets="all-linear"), 3))
    found = []
    for slots in ([2, 0, 3, 2], Route.on_device(torch.tensor([2, 0, 3, 2]))):
        with route(slots):
            small_llama(ids).logits.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in small_llama.parameters() if p.grad is not None]))
        small_llama.zero_grad()
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


def test_a_buffer_on_the_device_names_a_slot_for_each_token(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, SPEC, 2))
    slots = torch.tensor([[0, 1, 1, 2, 2, 2, 0, 1, 2]] * 4)
    assert torch.allclose(out(small_llama, ids, Route.on_device(slots)), out(small_llama, ids, slots), atol=1e-6)
    with pytest.raises(SlotError, match="slots for"):
        out(small_llama, ids, Route.on_device(torch.tensor([1, 2])))


def test_a_buffer_on_the_device_routes_no_head(small_bert: nn.Module, ids: Tensor) -> None:
    inject(small_bert, AdapterSpec(rank=4, head=("classifier",)), 2)
    with pytest.raises(SlotError, match="head"):
        out(small_bert, ids, Route.on_device(torch.tensor([1, 2, 0, 1])))


@pytest.fixture
def named(small_llama: nn.Module, scramble) -> list[int]:
    """The model with two adapters under the names cafe/tickets and bar; their slots."""
    bank = inject(small_llama, SPEC, 2)
    scramble(bank)
    several = [extract(bank, slot) for slot in bank.slots]
    eject(small_llama)
    return load(small_llama, several, names=["cafe/tickets", "bar"])


def test_a_name_is_the_slot_that_was_loaded_under_it(small_llama: nn.Module, ids: Tensor, named: list[int]) -> None:
    first, second = named
    assert torch.equal(out(small_llama, ids, "bar"), out(small_llama, ids, second))
    mixed = ["bar", 0, "cafe/tickets", first]
    assert torch.equal(out(small_llama, ids, mixed), out(small_llama, ids, [second, 0, first, first]))


def test_one_route_by_name_finds_its_slot_in_every_model_and_after_a_load(
    small_llama: nn.Module, ids: Tensor, named: list[int]
) -> None:
    first, second = named
    with torch.no_grad(), route("bar"):
        before = small_llama(ids).logits
        slot_table(small_llama).call(first, "bar")
        after = small_llama(ids).logits
    assert torch.equal(before, out(small_llama, ids, second)) and torch.equal(after, out(small_llama, ids, first))


def test_an_unknown_name_says_which_there_are(small_llama: nn.Module, ids: Tensor, named: list[int]) -> None:
    with pytest.raises(
        SlotError, match="'cafe/ticket'; did you mean 'cafe/tickets'.; the names are: bar, cafe/tickets"
    ):
        out(small_llama, ids, "cafe/ticket")


@pytest.mark.parametrize(("names", "said"), [(["a"], "1 names for 2"), (["a", "a"], "'a' stands twice")])
def test_names_are_one_for_each(small_llama: nn.Module, names: list[str], said: str) -> None:
    bank = inject(small_llama, SPEC)
    one = extract(bank, bank.first)
    eject(small_llama)
    with pytest.raises(SlotError, match=said):
        load(small_llama, [one, one], names=names)
    assert not banks_of(small_llama)


def check_rows_alone(model: nn.Module, x: Tensor, slots: list[int]) -> None:
    """A mixed batch answers as each row does where all have its slot."""
    with route(slots):
        mixed = model(x)
    for row, slot in enumerate(slots):
        with route(slot):
            assert torch.allclose(mixed[row], model(x)[row], atol=1e-6)


class Flattened(nn.Module):
    """A layer that gets all tokens of the batch in one axis, as OPT's and those of shared experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.q_proj(x.reshape(-1, 32)).view(*x.shape[:-1], 8)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_tokens_in_one_axis_are_routed(method: str, scramble) -> None:
    model, x = Flattened(), torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    scramble(inject(model, AdapterSpec(method, rank=4, targets="q_proj"), 3))
    with torch.no_grad():
        check_rows_alone(model, x, [2, 0, 3, 2])
        with route(torch.tensor([[1, 1, 0, 2, 2]])):
            packed = model(x[:1])
        for token, slot in enumerate([1, 1, 0, 2, 2]):
            with route(slot):
                assert torch.allclose(packed[:, token], model(x[:1])[:, token], atol=1e-6)
        with pytest.raises(SlotError, match="slots for"), route([1, 2, 3]):
            model(x)


def test_equal_slots_are_one_slot_wherever_rows_are(scramble) -> None:
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(32, 8)})])})
    scramble(inject(model, AdapterSpec("vera", rank=4, targets="q_proj"), 2))
    layer, x = model.get_submodule("experts.0.q_proj"), torch.randn(3, 32)
    with torch.no_grad():
        with route([2, 2, 2, 2]):
            found = layer(x)
        with route(2):
            assert torch.equal(found, layer(x))
        with pytest.raises(SlotError, match="the tokens that a router chose"), route([1, 2, 1]):
            layer(x)


class TokensFirst(nn.Module):
    """What gets a batch as (tokens, rows, features), under the name of a class that does."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.q_proj(x.transpose(0, 1)).transpose(0, 1)


TokensFirst.__name__ = "XLNetModel"


@pytest.mark.parametrize("num_tokens", [4, 5])
def test_tokens_before_rows_are_routed_by_rows(num_tokens: int, scramble) -> None:
    model, x = TokensFirst(), torch.randn(4, num_tokens, 32, generator=torch.Generator().manual_seed(0))
    scramble(inject(model, AdapterSpec("vera", rank=4, targets="q_proj"), 3))
    with torch.no_grad():
        check_rows_alone(model, x, [2, 0, 3, 2])
