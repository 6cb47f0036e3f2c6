"""Datum: one row of a pass, its tokens and what each chosen position is to predict, checked before it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyvera.data.encoding import IGNORED
from polyvera.errors import DataError

WEIGHTS = "weights"
MAX_TARGETS = 8192  # of a row, each of which has the logits of the whole vocabulary
Tokens = NDArray[np.int64]
Numbers = NDArray[np.float32]
NO_INPUTS: Mapping[str, Numbers] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Datum:
    """A row. Position i is where the token behind tokens[i] is predicted.

    tokens: (N,). positions, targets: (M,), where something is predicted, and what. inputs: what the loss takes of each
    of them, by name, (M,). Raises DataError for lengths that differ, and for what is empty or not finite.
    """

    tokens: Tokens
    positions: Tokens
    targets: Tokens
    inputs: Mapping[str, Numbers] = field(default_factory=lambda: NO_INPUTS)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or not len(self.tokens):
            raise DataError("a row has no tokens")
        if not len(self.positions):
            raise DataError("a row has no position at which something is to be predicted")
        every: Mapping[str, NDArray[Any]] = {"targets": self.targets, **self.inputs}
        for name, values in every.items():
            if values.shape != self.positions.shape:
                raise DataError(f"{name} has shape {values.shape}, and {len(self.positions)} positions are to predict")
            if not np.isfinite(values).all():
                raise DataError(f"{name} holds NaN or infinity")
        if self.positions.min() < 0 or self.positions.max() >= len(self.tokens):
            raise DataError(f"positions must be from 0 to {len(self.tokens) - 1}")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(
        cls, tokens: Sequence[int], targets: Sequence[int], inputs: Mapping[str, Sequence[float]] = MappingProxyType({})
    ) -> Datum:
        """The row in which every position predicts something: tokens, targets and inputs of one length."""
        named = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
        given = np.asarray(tokens, np.int64)
        return cls(given, np.arange(len(given)), np.asarray(targets, np.int64), named)

    @classmethod
    def of_row(cls, row: Mapping[str, Any], weight: float) -> Datum:
        """An encoded row, input_ids and labels, each of its target tokens with that weight."""
        ids, labels = np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)[1:]
        positions = np.flatnonzero(labels != IGNORED)
        return cls(ids, positions, labels[positions], {WEIGHTS: np.full(len(positions), weight, np.float32)})

    def check(self, num_tokens: int, max_length: int | None) -> None:
        """Raises DataError for a token that the model has no embedding for, and a row that is too long for it."""
        if max_length is not None and len(self.tokens) > max_length:
            raise DataError(f"a row has {len(self.tokens):,} tokens, and the model reads {max_length:,}")
        most = max(MAX_TARGETS, max_length or 0)
        if len(self.positions) > most:
            raise DataError(f"a row has {len(self.positions):,} targets, and at most {most:,} are taken")
        for name, ids in (("tokens", self.tokens), ("targets", self.targets)):
            beyond = ids[(ids < 0) | (ids >= num_tokens)]
            if len(beyond):
                raise DataError(f"{name}: {beyond[0]} is not a token; they are from 0 to {num_tokens - 1}")
