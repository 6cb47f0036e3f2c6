"""Rows with slots of their own: each is computed as with its slot's vectors alone, and -1 passes through."""

import pytest
import torch

from polyvera.adapter import batched
from polyvera.adapter.batched import adapt_rows, adapt_rows_by_factors, adapt_rows_naive, is_own, picked
from polyvera.adapter.equation import Vectors, adapt_naive

SLOTS, TOKENS, IN, RANK, OUT = 3, 5, 7, 4, 6
INDEX = torch.tensor([2, -1, 0, 2])
SCALE = (3.0, 2.0)


def drawn(*shape):
    return torch.randn(*shape)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stacks(letters):
    shapes = {"d": (SLOTS, RANK), "b": (SLOTS, OUT), "m": (SLOTS, OUT), "norm": (SLOTS, OUT), "C": (SLOTS, RANK, RANK)}
    return {x: drawn(*shapes[x]).abs() + 0.5 if x in letters else None for x in shapes}


def of_slot(B, own, slot):
    return Vectors(B, *(None if own[x] is None else own[x][slot] for x in "db"), SCALE, *(
        None if own[x] is None else own[x][slot] for x in ("m", "norm", "C")
    ))  # fmt: skip


@pytest.mark.parametrize(
    "letters", [("d", "b"), ("b",), ("d",), (), ("d", "b", "m", "norm"), ("C",), (*"dbC", "m", "norm")]
)
@pytest.mark.parametrize("way", [adapt_rows, adapt_rows_naive])
def test_each_row_is_computed_as_alone(way, letters):
    y, u, B, own, bias = drawn(4, TOKENS, OUT), drawn(4, TOKENS, RANK), drawn(OUT, RANK), stacks(letters), drawn(OUT)
    v = Vectors(B, own["d"], own["b"], SCALE, own["m"], own["norm"], own["C"])
    found = way(y, u, v, INDEX, bias)
    for row, slot in enumerate(INDEX.tolist()):
        alone = y[row] if slot < 0 else adapt_naive(y[row], u[row], of_slot(B, own, slot), bias)
        torch.testing.assert_close(found[row], alone)
    assert torch.equal(found[1], y[1])


def test_gradients_are_those_of_each_row_alone():
    y, u, B = drawn(4, TOKENS, OUT), drawn(4, TOKENS, RANK).requires_grad_(), drawn(OUT, RANK)
    d, b = drawn(SLOTS, RANK).requires_grad_(), drawn(SLOTS, OUT).requires_grad_()
    weights = drawn(4, TOKENS, OUT)
    found = adapt_rows(y, u, Vectors(B, d, b, SCALE), INDEX)
    ours = torch.autograd.grad((found * weights).sum(), (u, d, b))
    parts = [
        adapt_naive(y[r], u[r], Vectors(B, d[s], b[s], SCALE)) if s >= 0 else y[r] for r, s in enumerate(INDEX.tolist())
    ]
    theirs = torch.autograd.grad((torch.stack(parts) * weights).sum(), (u, d, b))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert not ours[1][1].any(), "no row has slot 1"


def test_nothing_of_a_slot_reaches_a_row_without_one():
    y, u, B = drawn(4, TOKENS, OUT), drawn(4, TOKENS, RANK), drawn(OUT, RANK)
    d = torch.full((SLOTS, RANK), torch.nan)
    found = adapt_rows_naive(y, u, Vectors(B, d, drawn(SLOTS, OUT), SCALE), INDEX)
    assert torch.equal(found[1], y[1]) and found[0].isnan().all()


@pytest.mark.parametrize(("own_A", "own_B"), [(True, True), (True, False), (False, True)])
def test_matrices_of_a_slot_multiply_its_rows(own_A, own_B):
    x, y = drawn(4, TOKENS, IN), drawn(4, TOKENS, OUT)
    A = drawn(SLOTS, RANK, IN) if own_A else drawn(RANK, IN)
    B = drawn(SLOTS, OUT, RANK) if own_B else drawn(OUT, RANK)
    d = drawn(SLOTS, RANK)
    found = adapt_rows_by_factors(x, y, A, Vectors(B, d, None, SCALE), INDEX)
    for row, slot in enumerate(INDEX.tolist()):
        own_a, own_b = A[slot] if own_A else A, B[slot] if own_B else B
        delta = (SCALE[0] / SCALE[1]) * ((x[row] @ own_a.T) * d[slot]) @ own_b.T
        torch.testing.assert_close(found[row], y[row] if slot < 0 else y[row] + delta)


@pytest.mark.parametrize("most", [1, 2 * RANK * IN + 2, 3 * RANK * IN + 3])
def test_matrices_of_few_rows_at_a_time_give_the_same(monkeypatch, most):
    x, y, A, B = drawn(4, TOKENS, IN), drawn(4, TOKENS, OUT), drawn(SLOTS, RANK, IN), drawn(OUT, RANK)
    m, norm, bias = drawn(SLOTS, OUT), drawn(SLOTS, OUT).abs() + 1, drawn(OUT)
    v = Vectors(B, None, None, SCALE, m, norm)
    whole = adapt_rows_by_factors(x, y, A, v, INDEX, bias)
    gathered, each = [], batched._each
    monkeypatch.setattr(batched, "MOST_GATHERED", most)
    monkeypatch.setattr(batched, "_each", lambda factor, rows: gathered.append(len(rows)) or each(factor, rows))
    torch.testing.assert_close(adapt_rows_by_factors(x, y, A, v, INDEX, bias), whole)
    assert max(gathered) == max(1, most // (RANK * IN)) and sum(gathered) == 2 * 4


def test_an_index_broadcasts_over_tokens():
    stack = drawn(SLOTS, RANK)
    found = picked(stack, INDEX, drawn(4, TOKENS, OUT))
    assert found.shape == (4, 1, RANK) and torch.equal(found[:, 0], stack[[2, 0, 0, 2]])
    assert is_own(INDEX, drawn(4, TOKENS, OUT)).flatten().tolist() == [True, False, True, True]
