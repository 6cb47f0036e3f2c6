"""Which labels a loss takes for 0 and 1, and the head that is put into their unit."""

from statistics import fmean, pstdev

import pytest
import torch

from polyvera.data.label_span import ITSELF, SPANS, inverse, learned_span, put_into_unit, scaled


@pytest.mark.parametrize("numbers", [[1.0, 5.0, 3.0, 3.5], [-2e9, 7e9, 1e9], [1e-6, 3e-6], [1e300, 3e300]])
def test_labels_have_mean_0_and_deviation_1(numbers: list[float]) -> None:
    learned = [scaled(number, SPANS["deviation"](numbers)) for number in numbers]
    assert fmean(learned) == pytest.approx(0.0, abs=1e-9) and pstdev(learned) == pytest.approx(1.0)
    assert [scaled(number, SPANS["range"](numbers)) for number in (min(numbers), max(numbers))] == [0.0, 1.0]


@pytest.mark.parametrize("number", [0.0, 3.0, -1e300])
def test_equal_labels_are_0(number: float) -> None:
    assert scaled(number, SPANS["deviation"]([number, number])) == 0.0


def test_a_span_is_undone_by_its_inverse() -> None:
    span = (3.0, 5.0)
    assert scaled(scaled(4.5, span), inverse(span)) == 4.5


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_head_answers_in_the_unit_of_its_labels(has_bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1, bias=has_bias))
    read, tensors = torch.randn(5, 4), dict(head.named_parameters())
    before = head(read)
    span = learned_span((30.0, 50.0), tensors)
    put_into_unit(tensors, span)
    expected = before * 20 + 30 if has_bias else before * 1300**0.5
    torch.testing.assert_close(head(read), expected)
    put_into_unit(tensors, inverse(span))
    torch.testing.assert_close(head(read), before)


def test_a_head_of_several_outputs_learns_the_labels_themselves() -> None:
    assert learned_span((3.0, 5.0), dict(torch.nn.Linear(4, 2).named_parameters())) == ITSELF
    assert learned_span((3.0, 5.0), {}) == ITSELF
