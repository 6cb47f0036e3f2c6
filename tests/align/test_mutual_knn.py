"""Mutual nearest neighbours: a model with itself scores 1, strangers score about k / n, and the null knows it."""

import pytest
import torch

from polyvera.align.mutual_knn import align, neighbours
from polyvera.errors import DataError


def features(seed: int, num: int = 300) -> torch.Tensor:
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(seed))


def test_a_model_with_itself_scores_one() -> None:
    found = align([features(0), features(1)], [features(0), features(1)], 10, 19)
    assert found.scores[0][0] == found.scores[1][1] == found.score == 1.0 and found.best == (0, 0)
    assert found.p_value == 1 / 20


def test_shuffled_texts_score_about_k_of_n() -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    found = align([features(0)], [features(0)[order]], 10, 99)
    assert found.score == pytest.approx(10 / 299, abs=0.01)
    assert sum(found.null) / 99 == pytest.approx(10 / 299, abs=0.004) and found.p_value > 0.01


def test_a_rotation_changes_nothing_and_a_planted_part_is_seen() -> None:
    Q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    normal = torch.nn.functional.normalize(features(0), dim=1)
    assert torch.equal(neighbours(normal, 5).sort(1).values, neighbours(normal @ Q, 5).sort(1).values)
    other = torch.cat([features(0)[:, :8], features(9)[:, 8:]], dim=1)
    found = align([features(0), features(2)], [features(7), other], 10, 49)
    assert found.best == (0, 1) and 0.1 < found.score < 1 and found.p_value == 1 / 50
    assert max(found.null) < 0.08  # of the best of four pairs


def test_the_nearest_are_those_of_a_plain_loop() -> None:
    own = features(4, 20)
    for i, near in enumerate(neighbours(own, 3).tolist()):
        ranked = sorted((j for j in range(20) if j != i), key=lambda j: -float(own[i] @ own[j]))
        assert near == ranked[:3]


def test_too_few_texts() -> None:
    with pytest.raises(DataError, match="5 texts are too few for 10"):
        align([features(0, 5)], [features(0, 5)], 10, 1)
