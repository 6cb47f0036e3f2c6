"""Each metric against its definition, written out row by row."""

from math import sqrt

import numpy as np
import pytest

from polyvera.data.row_form import Example
from polyvera.evaluate.metrics import METRICS, f1, macro_f1, majority, pearson, ranks, share, spearman

X = [1.0, 2.0, 2.0, 5.0, 3.5]
Y = [0.5, 0.4, 2.5, 4.0, 4.0]


def numbers(values: list[float]) -> list[Example]:
    return [Example(i, "q", "", labels=("score",), number=value) for i, value in enumerate(values)]


def sets(values: list[str]) -> list[Example]:
    return [Example(i, "q", "", labels=tuple(value)) for i, value in enumerate(values)]


def test_pearson_is_the_covariance_over_both_deviations() -> None:
    x, y = sum(X) / 5, sum(Y) / 5
    top = sum((a - x) * (b - y) for a, b in zip(X, Y, strict=True))
    expected = top / sqrt(sum((a - x) ** 2 for a in X) * sum((b - y) ** 2 for b in Y))
    assert pearson(X, Y) == pytest.approx(expected) == pytest.approx(np.corrcoef(X, Y)[0, 1])
    assert METRICS["pearson"](numbers(X), Y) == pytest.approx(expected)
    assert pearson(X, [1.0] * 5) == 0.0


def test_spearman_is_pearson_of_ranks_and_equal_numbers_share_one() -> None:
    assert ranks(X).tolist() == [1.0, 2.5, 2.5, 5.0, 4.0]
    assert spearman(X, Y) == pytest.approx(pearson([1, 2.5, 2.5, 5, 4], [2, 1, 3, 4.5, 4.5]))
    assert METRICS["spearman"](numbers(X), [10 * x for x in X]) == pytest.approx(1.0)
    assert METRICS["mse"](numbers(X), Y) == pytest.approx(sum((a - b) ** 2 for a, b in zip(X, Y, strict=True)) / 5)


def test_several_labels_are_counted_one_by_one() -> None:
    truth, answers = sets(["ab", "a", "", "c"]), [("a",), ("a", "b"), (), ("a",)]
    right, given, wanted = 2, 4, 4  # a twice; a b, a, c against a, a b, a
    assert METRICS["micro_f1"](truth, answers) == pytest.approx(2 * right / (given + wanted))
    each = [2 * 2 / (3 + 2), 2 * 0 / (1 + 1), 2 * 0 / (0 + 1)]  # a, b, c
    assert METRICS["macro_f1_of_labels"](truth, answers) == pytest.approx(sum(each) / 3)
    assert METRICS["exact_match_of_labels"](truth, answers) == 1 / 4
    assert METRICS["micro_f1"](sets(["", ""]), [(), ()]) == METRICS["macro_f1_of_labels"](sets([""]), [()]) == 0.0


def test_entities_are_scored_as_wholes_and_words_one_by_one() -> None:
    truth = [Example(1, "q", "", labels=("B-PER", "I-PER", "O")), Example(2, "q", "", labels=("B-LOC", "O"))]
    answers = [("B-PER", "O", "O"), ("B-LOC", "O")]
    assert METRICS["entity_precision"](truth, answers) == METRICS["entity_recall"](truth, answers) == 0.5
    assert METRICS["entity_f1"](truth, answers) == 0.5
    assert METRICS["word_accuracy"](truth, answers) == 4 / 5
    none = [("O", "O", "O"), ("O", "O")]
    assert METRICS["entity_precision"](truth, none) == METRICS["entity_f1"](truth, none) == 0.0


def test_rewards_are_right_above_zero() -> None:
    assert METRICS["reward_accuracy"]([], [0.1, -0.2, 0.3]) == pytest.approx(2 / 3)
    assert METRICS["reward_margin"]([], [0.1, -0.2, 0.4]) == pytest.approx(0.1)


def test_a_rank_is_worth_less_the_lower_it_is() -> None:
    assert METRICS["ndcg_at_10"]([], [1, 3, 11]) == pytest.approx((1 + 1 / 2 + 0) / 3)  # 1 / log2(1 + rank)
    assert METRICS["accuracy_at_1"]([], [1, 3, 11]) == pytest.approx(1 / 3)


def test_classes() -> None:
    examples = [Example(i, "q", right) for i, right in enumerate("aabc")]
    assert METRICS["accuracy"](examples, list("abbb")) == share([True, False, True, False]) == 0.5
    assert METRICS["majority"](examples, []) == majority(examples) == 0.5
    assert METRICS["macro_f1"](examples, list("abbb")) == macro_f1(list("aabc"), list("abbb"))
    assert f1(0, 0, 0) == 0.0
