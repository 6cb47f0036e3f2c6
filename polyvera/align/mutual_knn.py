"""align: the mutual k-nearest-neighbour score of the layers of two models (Huh 2024, 2405.07987, section 2 and B).

Of a text, the score of two layers is the share of its k nearest texts by the one that are among those by the other;
over all texts, the mean. The layers that score best are what two models are compared by, so the null is the best of all
layers too, when the one's texts are paired with the other's at random. A random pair of layers has k / (texts - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvera.align.features import prepared
from polyvera.errors import DataError

K, PERMUTATIONS, SEED = 10, 100, 0


@dataclass(frozen=True)
class Alignment:
    """How alike two models are. scores[i][j]: of layer i of the one and j of the other; layer 0 is the embeddings.

    null: the best score over all layers, for each pairing at random.
    """

    scores: tuple[tuple[float, ...], ...]
    null: tuple[float, ...]
    k: int
    num_texts: int

    @property
    def best(self) -> tuple[int, int]:
        """The layers that score best, the first of them where several do."""
        places = ((score, -i, -j) for i, row in enumerate(self.scores) for j, score in enumerate(row))
        _, i, j = max(places)
        return -i, -j

    @property
    def score(self) -> float:
        """Of the layers that score best."""
        i, j = self.best
        return self.scores[i][j]

    @property
    def p_value(self) -> float:
        """The share of pairings at random that score as well, this one counted among them."""
        return (1 + sum(one >= self.score for one in self.null)) / (1 + len(self.null))


def align(one: Sequence[Tensor], other: Sequence[Tensor], k: int = K, permutations: int = PERMUTATIONS) -> Alignment:
    """The alignment of two models by their layers' features (texts, width) of the same texts.

    Raises DataError for k neighbours of too few texts.
    """
    num = len(one[0])
    if not 0 < k < num - 1:
        raise DataError(f"{num} texts are too few for {k} nearest neighbours of each: give more texts, or a lower k")
    mine, theirs = ([neighbours(prepared(own), k) for own in layers] for layers in (one, other))
    scores = [[_shared(marked, near) for near in theirs] for marked in map(_marked, mine)]
    draw = torch.Generator().manual_seed(SEED)
    orders = [torch.randperm(num, generator=draw) for _ in range(permutations)]
    best = torch.zeros(permutations)
    for marked in map(_marked, mine):
        for near in theirs:
            found = torch.tensor([_shared(marked, _permuted(near, order)) for order in orders])
            best = torch.maximum(best, found)
    return Alignment(tuple(map(tuple, scores)), tuple(best.tolist()), k, num)


def neighbours(features: Tensor, k: int) -> Tensor:
    """(texts, k): the nearest others of each text by the inner product."""
    near = features @ features.T
    near.fill_diagonal_(-torch.inf)
    return near.topk(k, dim=1).indices


def _marked(near: Tensor) -> Tensor:
    """(texts, texts): whether a text is among the nearest."""
    return torch.zeros(len(near), len(near), dtype=torch.bool).scatter_(1, near, True)


def _shared(marked: Tensor, near: Tensor) -> float:
    return float(marked.gather(1, near).float().mean())


def _permuted(near: Tensor, order: Tensor) -> Tensor:
    """The neighbours when text i of the one model is paired with text order[i] of the other."""
    return order.argsort()[near[order]]
