"""PackedRows: encoded rows in about two bytes a token, for the many tenants of a fleet.

A row of Python lists takes forty bytes a token, more than a small adapter and its optimizer do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyvera.data.encoding import IGNORED, Encoded
from polyvera.data.label_span import ITSELF, Span
from polyvera.model.task import LM, TASKS, Task

LABELS, IDS = "labels", "input_ids"
Numbers = NDArray[Any]


@dataclass(frozen=True)
class PackedRows:
    """The rows of an Encoded, the same dicts when they are asked for.

    columns: the numbers of every column, in the smallest type that holds them: end to end where rows differ in how many
    they have, else an entry for each row. is_target: a bit for each token, whether it is its own label; None where
    labels are other numbers. ends: of each row's tokens. own_ends: of each row in the columns end to end. task: what
    the rows are for. span: of their labels.
    """

    columns: Mapping[str, Numbers]
    is_target: Numbers | None
    ends: Numbers
    sha256: str
    own_ends: Mapping[str, Numbers]
    task: Task = TASKS[LM]
    span: Span = ITSELF

    @classmethod
    def of(cls, rows: Encoded) -> PackedRows:
        """Packs rows; labels that are their tokens or IGNORED as bits."""
        ends = _ends(rows, IDS)
        own = all(_are_tokens(row) for row in rows.rows)
        columns = {name: _packed(rows, name) for name in rows[0] if not (own and name == LABELS)}
        bits = np.packbits([label != IGNORED for row in rows.rows for label in row[LABELS]]) if own else None
        return cls(
            columns,
            bits,
            ends,
            rows.sha256,
            {name: _like(ends, _ends(rows, name)) for name in columns if _is_ragged(rows, name)},
            rows.task,
            rows.span,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        begin, end = _place(self.ends, index)
        row: dict[str, Any] = {name: self._of(name, index).tolist() for name in self.columns}
        if self.is_target is None:
            return row
        first = begin // 8
        bits = np.unpackbits(self.is_target[first : (end + 7) // 8])[begin - 8 * first : end - 8 * first]
        return row | {LABELS: [token if bit else IGNORED for token, bit in zip(row[IDS], bits, strict=True)]}

    def _of(self, name: str, index: int) -> Numbers:
        column = self.columns[name]
        return (
            column[slice(*_place(self.own_ends[name], index))] if name in self.own_ends else np.asarray(column[index])
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0).tolist()  # type: ignore[no-any-return]

    @property
    def num_bytes(self) -> int:
        """What the rows take in memory."""
        bits = 0 if self.is_target is None else self.is_target.nbytes
        ends = {id(own): own.nbytes for own in (self.ends, *self.own_ends.values())}
        return sum(column.nbytes for column in self.columns.values()) + bits + sum(ends.values())


def _are_tokens(row: Mapping[str, Any]) -> bool:
    """Whether the labels are the row's own tokens, or IGNORED."""
    labels = row[LABELS]
    if not isinstance(labels, list) or len(labels) != len(row[IDS]):
        return False
    return all(label in (token, IGNORED) for label, token in zip(labels, row[IDS], strict=True))


def _is_ragged(rows: Encoded, name: str) -> bool:
    """Whether a column has lists, as many numbers as tokens or as it likes in each row."""
    values = [row[name] for row in rows.rows]
    if not all(isinstance(value, list) for value in values):
        return False
    return len({*map(len, values)}) > 1 or all(len(row[name]) == len(row[IDS]) for row in rows.rows)


def _ends(rows: Encoded, name: str) -> Numbers:
    return np.cumsum([len(row[name]) for row in rows.rows])


def _like(ends: Numbers, own: Numbers) -> Numbers:
    """The same array where both say the same."""
    return ends if np.array_equal(ends, own) else own


def _place(ends: Numbers, index: int) -> tuple[int, int]:
    """Where a row begins and ends."""
    return (int(ends[index - 1]) if index else 0), int(ends[index])


def _packed(rows: Encoded, name: str) -> Numbers:
    values = [row[name] for row in rows.rows]
    return _smallest([n for value in values for n in value] if _is_ragged(rows, name) else values)


def _smallest(numbers: Sequence[Any]) -> Numbers:
    found = np.array(numbers)
    if found.dtype.kind == "f":
        return found
    return found.astype(np.result_type(*(np.min_scalar_type(n) for n in (found.min(), found.max()))))
