"""Batch: rows of tokens padded to one length, and the order in which an epoch takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from polyvera.data.encoding import IGNORED
from polyvera.model.config import pad_token
from polyvera.model.decoder_inputs import decoder_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = "parts"  # the column with the tokens of each sequence of a row that has several
POOL = 50  # batches whose rows are sorted by length together


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Tensor:
    """(rows, longest) of whole numbers, filled up on the right, or on the left."""
    width = max(map(len, rows))
    fillers = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if left else [*r, *f] for f, r in zip(fillers, rows, strict=True)], dtype=torch.long)


@dataclass(frozen=True, slots=True)
class Collator:
    """Encoded rows -> one batch. The mask comes from the lengths, never from the pad token, which may be a real one.

    decoder_inputs: makes of the answers what a decoder reads, None for a model without one.
    """

    pad_id: int
    decoder_inputs: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """For the rows of that model. Raises RecipeError as pad_token()."""
        return cls(pad_token(model, tokenizer), decoder_inputs(model))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels (rows, longest), or labels (rows,) or (rows, outputs) of whole rows.

        With a decoder also its decoder_input_ids, of the labels' shape.

        Rows of several sequences: the first of every row, then the second of every row.
        """
        fills = {"input_ids": self.pad_id, "labels": IGNORED, "token_type_ids": 0}
        rows = sequences(rows)
        batch = {k: self._column([row[k] for row in rows], fills[k]) for k in rows[0]}
        batch["attention_mask"] = padded([[1] * len(row["input_ids"]) for row in rows], 0)
        if self.decoder_inputs is not None:
            batch["decoder_input_ids"] = self.decoder_inputs(batch["labels"])
        return batch

    def _column(self, values: list[Any], fill: int) -> Tensor:
        return torch.tensor(values) if isinstance(values[0], int | float) else padded(values, fill)


def sequences(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Each row's sequences on their own, part by part; the rows themselves where each is one sequence."""
    if PARTS not in rows[0]:
        return rows
    ends = [[0, *accumulate(row[PARTS])] for row in rows]
    columns = [name for name in rows[0] if name != PARTS]
    return [
        {k: row[k][end[i] : end[i + 1]] if isinstance(row[k], list) else row[k] for k in columns}
        for i in range(len(ends[0]) - 1)
        for row, end in zip(rows, ends, strict=True)
    ]


def order(num_rows: int, seed: int, epoch: int, lengths: Sequence[int] | None = None, batch_size: int = 1) -> list[int]:
    """The order of the rows in one epoch, the same everywhere. lengths: rows of like length come near each other."""
    shuffled: list[int] = np.random.RandomState([seed, epoch]).permutation(num_rows).tolist()
    if lengths is None:
        return shuffled
    pool = POOL * batch_size
    pools = (shuffled[i : i + pool] for i in range(0, num_rows, pool))
    return [row for rows in pools for row in sorted(rows, key=lambda i: -lengths[i])]


class EpochOrder(Sampler[int]):
    """The rows in `order`, a new one at each epoch; an epoch that is restarted keeps its order."""

    def __init__(self, num_rows: int, seed: int, lengths: Sequence[int] | None = None, batch_size: int = 1) -> None:
        self.num_rows, self.seed, self.lengths, self.batch_size = num_rows, seed, lengths, batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        return iter(order(self.num_rows, self.seed, self.epoch, self.lengths, self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next, from 0."""
        self.epoch = epoch


def packed(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, the longest first, at most max_tokens with the padding (or one row)."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
