"""PassRows: the rows of one pass as bytes, from the server to the trainer, and their log-probabilities back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

Array = NDArray[Any]
TOKENS, TARGETS, LENGTHS, WIDTHS, INPUT = "tokens", "targets", "lengths", "widths", "input."


@dataclass(frozen=True, slots=True, eq=False)
class PassRow:
    """tokens: (N,). targets, inputs: (N * K,) each, K targets for each position, one after the other."""

    tokens: Array
    targets: Array
    inputs: Mapping[str, Array]

    @property
    def width(self) -> int:
        """K."""
        return len(self.targets) // max(1, len(self.tokens))

    @property
    def positions(self) -> Array:
        """Where each target is predicted, (N * K,)."""
        return np.repeat(np.arange(len(self.tokens)), self.width)


def rows_to_bytes(rows: Sequence[PassRow]) -> bytes:
    """All rows, each with the same inputs."""
    tensors = {
        TOKENS: _joined([row.tokens for row in rows], np.int32),
        TARGETS: _joined([row.targets for row in rows], np.int64),
        LENGTHS: np.asarray([len(row.tokens) for row in rows], np.int64),
        WIDTHS: np.asarray([row.width for row in rows], np.int64),
    }
    for name in rows[0].inputs if rows else ():
        tensors[f"{INPUT}{name}"] = _joined([row.inputs[name] for row in rows], np.float32)
    return save(tensors)


def rows_from_bytes(data: bytes) -> list[PassRow]:
    """The inverse of rows_to_bytes()."""
    found = load(data)
    lengths, sizes = found[LENGTHS], found[LENGTHS] * found[WIDTHS]
    inputs = {name[len(INPUT) :]: _split(value, sizes) for name, value in found.items() if name.startswith(INPUT)}
    parts = zip(_split(found[TOKENS], lengths), _split(found[TARGETS], sizes), strict=True)
    return [
        PassRow(tokens, targets, {name: values[i] for name, values in inputs.items()})
        for i, (tokens, targets) in enumerate(parts)
    ]


def logprobs_to_bytes(logprobs: Sequence[Array], widths: Sequence[int]) -> bytes:
    """The log-probabilities of each row's targets, (N * K,) each."""
    lengths = np.asarray([len(one) // width for one, width in zip(logprobs, widths, strict=True)], np.int64)
    return save({TARGETS: _joined(logprobs, np.float32), LENGTHS: lengths, WIDTHS: np.asarray(widths, np.int64)})


def logprobs_from_bytes(data: bytes) -> list[Array]:
    """Those of each row, (N,), or (N, K) where there were several targets for a position."""
    found = load(data)
    parts = _split(found[TARGETS], found[LENGTHS] * found[WIDTHS])
    shapes = zip(parts, found[WIDTHS].tolist(), strict=True)
    return [part if width == 1 else part.reshape(-1, width) for part, width in shapes]


def _joined(parts: Sequence[Array], dtype: Any) -> Array:
    return np.concatenate([np.asarray(part, dtype) for part in parts]) if parts else np.zeros(0, dtype)


def _split(values: Array, sizes: Array) -> list[Array]:
    return np.split(values, np.cumsum(sizes)[:-1])
