"""The slots of a layer without vLLM: against the plain equation, in shards, beside base rows."""

import pytest
import torch

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.equation import NormParts, delta, delta_weight
from polyvera.adapter.spec import BasisKey
from polyvera.errors import BasisError
from polyvera.vllm.pair import FEW, Plain, SharedPair
from polyvera.vllm.slots import BASE, LayerSlots, PackedMember, SiteVectors

RANK, IN, OUTS = 6, 10, (8, 4, 4)
KEY = BasisKey("kaiming_uniform", 0, RANK, 12, 9)


def pair(rank=RANK):
    return SharedPair(rank, torch.float32, torch.device("cpu"))


def members(rows=None, served=(True, True, True)):
    rows = rows or [torch.arange(out) for out in OUTS]
    return [PackedMember(f"m{i}", out, kept, yes) for i, (out, kept, yes) in enumerate(zip(OUTS, rows, served))]


def vectors(seed, *, magnitude=False):
    stream = torch.Generator().manual_seed(seed)
    drawn = [
        (torch.randn(RANK, generator=stream), torch.randn(o, generator=stream), torch.rand(o, generator=stream))
        for o in OUTS
    ]
    return [SiteVectors(d, b, 1 + m if magnitude else None) for d, b, m in drawn]


def never(_):
    raise AssertionError("no magnitude was put, so no norm is needed")


def layer(shared, rows=None, columns=None, *, slots=3, gain=False, **served):
    columns = torch.arange(IN) if columns is None else columns
    return LayerSlots(shared, columns, members(rows, **served), slots, gain)


def plain(x, given):
    basis = draw_basis(KEY)
    A = basis.A[:, :IN]
    return torch.cat([delta(x, A, basis.B[:o], v.d, v.b) for v, o in zip(given, OUTS)], dim=-1)


def added(slots, x, index, bias=None, y=None):
    y = torch.zeros(len(x), sum(len(m.rows) for m in slots.members)) if y is None else y
    slots.add(y, x, torch.tensor(index) - BASE, bias)
    return y


@pytest.mark.parametrize("order", ["bound first", "bound last"])
def test_each_row_gets_the_delta_of_its_slot(order):
    shared, x = pair(), torch.randn(4, IN)
    if order == "bound first":
        layer(shared)  # the pieces of a layer must be there to be filled
    slots = layer(shared)
    shared.bind(draw_basis(KEY))
    given = [vectors(i) for i in range(3)]
    for i in range(3):
        slots.put(i, given[i], never)
    want = torch.stack([plain(x[i], given[s]) for i, s in enumerate((2, 0, 1, 0))])
    torch.testing.assert_close(added(slots, x, [2, 0, 1, 0]), want)


@pytest.mark.parametrize("gain", [False, True])
def test_rows_without_adapter_are_the_base_bit_for_bit(gain):
    slots, shared = None, pair()
    slots = layer(shared, gain=gain)
    shared.bind(draw_basis(KEY))
    for i in range(3):
        slots.put(i, vectors(i), never)
    slots.clear(1)
    y, bias = torch.randn(5, sum(OUTS)), torch.randn(sum(OUTS))
    after = added(slots, torch.randn(5, IN), [-1, 0, 1, -1, 2], bias, y.clone())
    assert [bool((after[i] == y[i]).all()) for i in range(5)] == [True, False, True, True, False]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_shards_by_output_are_rows_of_the_whole(num_ranks):
    x, given, parts = torch.randn(3, IN), vectors(0), []
    for rank in range(num_ranks):
        rows = [torch.arange(out).chunk(num_ranks)[rank] for out in OUTS]
        shared = pair()
        slots = layer(shared, rows)
        shared.bind(draw_basis(KEY))
        slots.put(0, given, never)
        parts.append(added(slots, x, [0, 0, 0]).split([len(r) for r in rows], dim=1))
    whole = torch.cat([torch.cat([p[i] for p in parts], dim=1) for i in range(3)], dim=1)
    torch.testing.assert_close(whole, plain(x, given))


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_shards_by_input_sum_to_the_whole(num_ranks):
    x, given, total = torch.randn(3, IN), vectors(0), torch.zeros(3, sum(OUTS))
    for columns in torch.arange(IN).chunk(num_ranks):
        shared = pair()
        slots = layer(shared, columns=columns)
        shared.bind(draw_basis(KEY))
        slots.put(0, given, never)
        total += added(slots, x[:, columns], [0, 0, 0])
    torch.testing.assert_close(total, plain(x, given))


def test_a_magnitude_is_the_norm_of_each_adapted_row():
    W, bias, x = torch.randn(sum(OUTS), IN), torch.randn(sum(OUTS)), torch.randn(2, IN)
    shared, given = pair(), vectors(0, magnitude=True)
    slots = layer(shared, gain=True)
    basis = draw_basis(KEY)
    shared.bind(basis)
    slots.put(0, given, lambda A: NormParts.of(W, A))
    dW = torch.cat([delta_weight(basis.A[:, :IN], basis.B[:o], v.d, v.b) for v, o in zip(given, OUTS)])
    g = torch.cat([v.m for v in given]) / (W + dW).norm(dim=1)
    y = x @ W.T + bias
    torch.testing.assert_close(
        added(slots, x, [0, -1], bias, y.clone()), torch.stack([g * ((W + dW) @ x[0]) + bias, y[1]])
    )


def test_a_member_that_is_not_served_takes_no_room_and_stays_the_base():
    shared = pair()
    slots = layer(shared, served=(True, False, True))
    shared.bind(draw_basis(KEY))
    given = vectors(0)
    slots.put(0, given, never)
    x = torch.randn(1, IN)
    y = added(slots, x, [0])
    assert bool((y[:, 8:12] == 0).all())
    torch.testing.assert_close(torch.cat([y[:, :8], y[:, 12:]], 1), plain(x, given)[:, [*range(8), *range(12, 16)]])
    assert slots.slot_bytes == 4 * (2 * RANK + OUTS[0] + OUTS[2])


def test_a_narrower_pair_of_lower_rank_leaves_zeros():
    """The pair covers 9 of the outputs and 6 of 8 ranks; what lies beyond must add nothing."""
    shared = pair(rank=8)
    wide = LayerSlots(shared, torch.arange(14), [PackedMember("m", 20, torch.arange(20))], 1, False)
    slots = layer(shared)
    shared.bind(draw_basis(KEY))
    A, B = wide.A.weight, wide.groups[0].B.weight
    assert bool((A[:, 12:] == 0).all()) and bool((A[RANK:] == 0).all())
    assert bool((B[9:] == 0).all()) and bool((B[:, RANK:] == 0).all())
    x, given = torch.randn(1, IN), vectors(0)
    slots.put(0, given, never)
    torch.testing.assert_close(added(slots, x, [0]), plain(x, given))


def test_layers_of_like_width_share_their_pieces():
    shared = pair()
    first, second = layer(shared), layer(shared)
    assert first.A is second.A
    assert [len(group.parts) for group in first.groups] == [1, 2]  # the second and third are one product
    assert first.groups[1].B is second.groups[1].B
    assert shared.num_bytes == 4 * RANK * (IN + 8 + 4)


def test_another_pair_or_too_high_a_rank_is_refused():
    shared = pair()
    with pytest.raises(BasisError, match="POLYVERA_RANK=7"):
        shared.bind(draw_basis(BasisKey("kaiming_uniform", 0, 7, 12, 9)))
    shared.bind(draw_basis(KEY))
    shared.bind(draw_basis(KEY))
    with pytest.raises(BasisError, match="share"):
        shared.bind(draw_basis(BasisKey("kaiming_uniform", 1, RANK, 12, 9)))


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_a_product_of_few_rows_is_the_same_product(rows):
    x, W = torch.randn(rows, IN), torch.randn(7, IN)
    torch.testing.assert_close(Plain(W)(x), x @ W.T)
