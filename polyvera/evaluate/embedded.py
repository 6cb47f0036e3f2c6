"""embedded_answers: what the vectors of a table's rows say: how alike two texts are, or where the right one ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyvera.adapter.route import route
from polyvera.data.batching import PARTS, Collator
from polyvera.data.encoding import Encoded
from polyvera.data.text_vectors import text_vectors
from polyvera.model.inference import by_length, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def embedded_answers(
    model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int
) -> list[float]:
    """A number for each row. A text ranks among the second texts of all rows that its slot answers."""
    vectors = _vectors(model, rows, slots, collate, batch_size)
    answers = [0.0] * len(rows)
    for slot in set(slots):
        mine = [i for i, used in enumerate(slots) if used == slot]
        for i, answer in zip(mine, VECTOR_ANSWERS[rows.task.answer](vectors[:, mine]), strict=True):
            answers[i] = answer
    return answers


def _vectors(model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int) -> Tensor:
    """(texts of a row, rows, width)."""
    num_texts = len(rows[0][PARTS])
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with evaluating(model):
        for batch in by_length(rows.lengths, batch_size):
            inputs = collate([rows[i] for i in batch])
            del inputs["labels"]
            with route([slots[i] for i in batch] * num_texts):
                own = text_vectors(model, {k: t.to(model.device) for k, t in inputs.items()})
            for i, vectors in zip(batch, own.cpu().view(num_texts, len(batch), -1).unbind(1), strict=True):
                found[i] = vectors
    return torch.stack(found, 1)


def _cosines(vectors: Tensor) -> list[float]:
    return (vectors[0] * vectors[1]).sum(-1).tolist()


def _ranks(vectors: Tensor) -> list[float]:
    """1 where no other row's second text is nearer than its own."""
    scores = vectors[0] @ vectors[1].T
    own = scores.diagonal()[:, None]
    return (1 + (scores > own + 1e-6).sum(1)).tolist()


VECTOR_ANSWERS: Mapping[str, Callable[[Tensor], list[float]]] = MappingProxyType({"cosine": _cosines, "rank": _ranks})
