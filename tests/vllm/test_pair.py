"""The pair of a process: pieces are zeros until the first adapter says which pair it is, and then that pair's."""

import pytest
import torch

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.spec import BasisKey
from polyvera.errors import BasisError
from polyvera.vllm.pair import FEW, Plain, SharedPair

RANK, IN, OUT = 6, 12, 9


def pair(dtype=torch.float32):
    return SharedPair(RANK, dtype, torch.device("cpu"))


def basis(seed=0, rank=RANK):
    return draw_basis(BasisKey("kaiming_uniform", seed, rank, IN, OUT))


def padded(part, shape):
    """In the first corner of zeros."""
    whole = torch.zeros(shape)
    whole[: part.shape[0], : part.shape[1]] = part
    return whole


@pytest.mark.parametrize("rank", [RANK, RANK - 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_filled_in_place(rank, dtype):
    shared, found, columns, rows = pair(dtype), basis(rank=rank), torch.tensor([1, 4, 7]), torch.tensor([8, 0])
    A, B = shared.columns(columns), shared.rows(rows)
    assert not A.weight.any() and not B.weight.any()
    places = A.weight.data_ptr(), B.weight.data_ptr()
    shared.bind(found)
    assert torch.equal(A.weight, padded(found.A[:, columns], (RANK, 3)).to(dtype))
    assert torch.equal(B.weight, padded(found.B[rows], (2, RANK)).to(dtype))
    assert (A.weight.data_ptr(), B.weight.data_ptr()) == places
    assert shared.num_bytes == A.weight.nbytes + B.weight.nbytes


def test_lines_that_the_pair_lacks_stay_zero():
    shared = pair()
    A, B = shared.columns(torch.tensor([0, IN + 3])), shared.rows(torch.tensor([OUT, 2]))
    shared.bind(basis())
    assert A.weight[:, 0].all() and not A.weight[:, 1].any()
    assert not B.weight[0].any() and B.weight[1].all()


def test_layers_that_ask_for_the_same_share_one_piece():
    shared = pair()
    assert shared.rows(torch.arange(4)) is shared.rows(torch.arange(4)) is not shared.rows(torch.arange(1, 5))
    assert shared.columns(torch.arange(4)) is shared.columns(torch.arange(4))


def test_only_one_pair_is_served():
    shared = pair()
    with pytest.raises(BasisError, match=f"POLYVERA_RANK={RANK + 1}"):
        shared.bind(basis(rank=RANK + 1))
    shared.bind(basis())
    shared.bind(basis())
    with pytest.raises(BasisError, match="engine of its own"):
        shared.bind(basis(seed=1))


@pytest.mark.parametrize("num_rows", [1, FEW, FEW + 1])
def test_a_plain_product_is_the_same_for_few_and_many_rows(num_rows):
    torch.manual_seed(0)
    weight, x = torch.randn(5, 8), torch.randn(num_rows, 8)
    product = Plain(weight)
    torch.testing.assert_close(product(x), torch.nn.functional.linear(x, weight))
    weight.mul_(2)
    product.refill()
    torch.testing.assert_close(product(x), torch.nn.functional.linear(x, weight))
