"""The losses of vectors against their formulas, written out pair by pair."""

from collections.abc import Callable
from math import exp, log

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.train.vector_loss import SCALE, VECTOR_LOSSES, in_batch_negatives, of_groups, squared_cosine_error

NUMBERS = torch.tensor([0.5, 2.0, 2.0, 1.0])


def drawn(num_texts: int) -> Tensor:
    values = torch.randn(num_texts, 4, 6, generator=torch.Generator().manual_seed(num_texts))
    return F.normalize(values, dim=-1)


@pytest.mark.parametrize("num_texts", [2, 3])
def test_each_text_is_to_find_its_own_among_all_others(num_texts: int) -> None:
    v = drawn(num_texts)
    for i, found in enumerate(in_batch_negatives(v, NUMBERS)):
        others = [exp(SCALE * float(v[0, i] @ v[k, j])) for k in range(1, num_texts) for j in range(4)]
        assert float(found) == pytest.approx(-log(others[i] / sum(others)), rel=1e-4)


def test_a_cosine_is_to_be_its_number() -> None:
    v = drawn(2)
    expected = [(float(v[0, i] @ v[1, i]) - float(NUMBERS[i])) ** 2 for i in range(4)]
    assert squared_cosine_error(v, NUMBERS).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", VECTOR_LOSSES.values())
def test_groups_lose_apart(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    v = drawn(2)
    found = of_groups(loss, v, NUMBERS, torch.tensor([5, 2, 5, 2]))
    for mine in ([0, 2], [1, 3]):
        torch.testing.assert_close(found[mine], loss(v[:, mine], NUMBERS[mine]))
    torch.testing.assert_close(of_groups(loss, v, NUMBERS, None), loss(v, NUMBERS))
