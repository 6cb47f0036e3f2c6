"""Siblings that read the same x share one u = A x, and nobody gets another's."""

import copy

import pytest
import torch
from torch.nn import functional as F

from polyvera.adapter.shared_input import SharedInput, project_input


@pytest.fixture
def given():
    torch.manual_seed(0)
    return SharedInput(), torch.randn(2, 5, 8), torch.randn(3, 8)


def test_siblings_get_one_tensor(given):
    shared, x, A = given
    u = shared.project(x, A, 0.0, "q")
    torch.testing.assert_close(u, F.linear(x, A))
    assert shared.project(x, A, 0.0, "k") is u


def test_a_second_forward_of_the_same_x_has_gradients_of_its_own(given):
    shared, x, A = given
    x.requires_grad_()
    for _ in range(2):
        both = [shared.project(x, A, 0.0, name) for name in ("q", "k")]
        assert both[0] is both[1]
        both[0].sum().backward()
    torch.testing.assert_close(x.grad, 2 * A.sum(0).expand_as(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, A: (x.clone(), A, 0.0),
        lambda x, A: (x, A + 1, 0.0),
        lambda x, A: (x, A.double(), 0.0),
        lambda x, A: (x, A, 0.5),
        lambda x, A: (x.add_(1), A, 0.0),
    ],
    ids=["another x", "another A", "another dtype", "dropout", "x was written"],
)
def test_whatever_differs_is_computed_anew(given, change):
    shared, x, A = given
    u = shared.project(x, A, 0.0, "q")
    other = change(x, A)
    torch.manual_seed(1)
    found = shared.project(*other, "k")
    torch.manual_seed(1)
    assert found is not u and torch.equal(found, project_input(*other))


def test_gradients_are_not_taken_from_a_forward_without_any(given):
    shared, x, A = given
    x.requires_grad_()
    with torch.no_grad():
        bare = shared.project(x, A, 0.0, "q")
    u = shared.project(x, A, 0.0, "q")
    assert not bare.requires_grad and u.requires_grad
    u.sum().backward()
    torch.testing.assert_close(x.grad, A.sum(0).expand_as(x))


def test_nothing_is_kept_of_an_input_that_is_gone(given):
    shared, x, A = given
    shared.project(x, A, 0.0, "q")
    assert shared._kept is not None and copy.deepcopy(shared)._kept is None
    del x, given
    shared.project(torch.ones(1, 8), A, 0.0, "q")
    assert shared._kept is None
