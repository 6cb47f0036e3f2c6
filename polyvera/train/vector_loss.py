"""VECTOR_LOSSES: what the vectors of the texts of several rows lose together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 20.0  # of cosines, as in sentence-transformers


def in_batch_negatives(vectors: Tensor, numbers: Tensor) -> Tensor:
    """(rows,): each first text is to find its own second one among all others' texts (InfoNCE, van den Oord 2018).

    vectors: (texts of a row, rows, width), of length 1; third texts are wrong for every row. numbers: of no use.
    """
    scores = SCALE * vectors[0] @ vectors[1:].flatten(0, 1).T
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")


def squared_cosine_error(vectors: Tensor, numbers: Tensor) -> Tensor:
    """(rows,): how far each pair's cosine is from its number, squared, as in sentence-transformers (Reimers 2019).

    vectors: (2, rows, width), of length 1. numbers: (rows,), from 0 to 1.
    """
    return ((vectors[0] * vectors[1]).sum(-1) - numbers) ** 2


def of_groups(
    loss: Callable[[Tensor, Tensor], Tensor], vectors: Tensor, numbers: Tensor, groups: Tensor | None
) -> Tensor:
    """(rows,): the loss of each group of rows on its own. groups: the number of each row's, None for one of all."""
    if groups is None:
        return loss(vectors, numbers)
    found = vectors.new_zeros(len(groups))
    for group in sorted(set(groups.tolist())):
        mine = (groups == group).nonzero()[:, 0].to(vectors.device)
        found = found.index_add(0, mine, loss(vectors[:, mine], numbers[mine]))
    return found


VECTOR_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"in_batch_negatives": in_batch_negatives, "squared_cosine_error": squared_cosine_error}
)
