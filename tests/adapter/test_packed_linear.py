"""Packed products are plain ones, whatever the form, the rows and the slice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvera.adapter import packed_linear
from polyvera.adapter.packed_linear import PackedModel, Packs, Product, fastest, forms, is_packed, linear, packed

needs_forms = pytest.mark.skipif(not forms(), reason="this build of torch packs no matrices")
SHAPES = [(1, 1), (7, 5), (33, 100), (192, 64), (256, 576)]


def is_near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@needs_forms
@pytest.mark.parametrize("form", forms(), ids=lambda form: form.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_form_multiplies_any_number_of_rows(form, shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    multiply: Product = form(weight)
    for rows in (*range(1, 35), 63, 64, 65, 100, 256, 257, 1000):
        x = torch.randn(1, rows, shape[1])
        for added in (None, bias):
            assert is_near(multiply(x, added), F.linear(x, weight, added)), (rows, added is None)


@needs_forms
def test_a_slice_of_a_frozen_matrix_is_packed_on_its_own() -> None:
    packs, A, B = Packs(), torch.randn(8, 96), torch.randn(96, 8)
    packs.freeze(A)
    packs.freeze(B)
    x, u = torch.randn(5, 40), torch.randn(5, 8)
    with packed(packs):
        assert is_packed()
        assert is_near(linear(x, A[:, :40]), F.linear(x, A[:, :40]))
        assert is_near(linear(u, B[:40]), F.linear(u, B[:40]))
    assert packs.of(A[:, :40]) is packs.of(A[:, :40]) is not packs.of(A[:, :41])


@needs_forms
def test_a_matrix_that_may_change_is_not_packed() -> None:
    packs, weight, x = Packs(), torch.randn(6, 4), torch.randn(3, 4)
    assert packs.of(weight) is None
    with packed(packs):
        weight.mul_(2)
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@needs_forms
def test_no_rows_make_no_rows() -> None:
    packs, weight = Packs(), torch.randn(6, 4)
    packs.freeze(weight)
    with packed(packs):
        assert linear(torch.empty(0, 4), weight).shape == (0, 6)


@needs_forms
def test_the_choice_of_a_form_draws_no_random_numbers_and_is_made_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    state, seen = torch.get_rng_state(), []
    monkeypatch.setattr(
        packed_linear, "fastest", lambda weight, among: seen.append(weight.shape) or fastest(weight, among)
    )
    packs = Packs()
    for weight in (first := torch.ones(6, 4), second := torch.ones(6, 4), third := torch.ones(4, 6)):
        packs.freeze(weight)
        packs.of(weight)
    assert torch.equal(state, torch.get_rng_state())
    assert seen == [first.shape, third.shape] and first.shape == second.shape


@needs_forms
def test_a_form_that_is_wrong_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: Tensor) -> Product:
        zeros = torch.zeros(weight.shape[0])
        return lambda x, bias: zeros.expand(*x.shape[:-1], -1)

    right, weight, x = forms()[0], torch.randn(64, 64), torch.randn(9, 64)
    assert fastest(weight, [wrong, right]) is right
    assert fastest(weight, [wrong]) is None
    monkeypatch.setattr(packed_linear, "forms", lambda: [wrong])
    packs = Packs()
    packs.freeze(weight)
    with packed(packs):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@needs_forms
def test_a_model_is_packed_until_undo() -> None:
    model, packs, x = nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 5, bias=False)), Packs(), torch.randn(3, 12)
    with torch.inference_mode():
        expected = model(x)
        held = PackedModel(model, packs)
        assert torch.equal(model(x), expected)  # not yet asked for
        with packed(packs):
            assert is_near(model(x), expected)
        held.undo()
        with packed(packs):
            assert torch.equal(model(x), expected)
