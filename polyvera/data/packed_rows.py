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

LABELS, IDS = "labels", "input_ids"
Numbers = NDArray[Any]


@dataclass(frozen=True)
class PackedRows:
    """The rows of an Encoded, the same dicts when they are asked for.

    columns: every column's numbers end to end, in the smallest type that holds them. is_target: a bit for each token,
    whether it is its own label; None where a row has one class as its label. ends: of each row.
    """

    columns: Mapping[str, Numbers]
    is_target: Numbers | None
    ends: Numbers
    sha256: str

    @classmethod
    def of(cls, rows: Encoded) -> PackedRows:
        """Packs rows whose labels are their tokens or IGNORED, or one class a row."""
        names = [name for name in rows[0] if name != LABELS]
        columns = {name: _smallest([n for row in rows.rows for n in row[name]]) for name in names}
        ends = np.cumsum(rows.lengths)
        if isinstance(rows[0][LABELS], int):
            return cls(columns | {LABELS: _smallest([row[LABELS] for row in rows.rows])}, None, ends, rows.sha256)
        bits = np.packbits([label != IGNORED for row in rows.rows for label in row[LABELS]])
        return cls(columns, bits, ends, rows.sha256)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        begin, end = (int(self.ends[index - 1]) if index else 0), int(self.ends[index])
        row: dict[str, Any] = {k: v[begin:end].tolist() for k, v in self.columns.items() if k != LABELS}
        if self.is_target is None:
            return row | {LABELS: int(self.columns[LABELS][index])}
        first = begin // 8
        bits = np.unpackbits(self.is_target[first : (end + 7) // 8])[begin - 8 * first : end - 8 * first]
        return row | {LABELS: [token if bit else IGNORED for token, bit in zip(row[IDS], bits, strict=True)]}

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
        return sum(column.nbytes for column in self.columns.values()) + bits + self.ends.nbytes


def _smallest(numbers: Sequence[int]) -> Numbers:
    return np.array(numbers, dtype=np.min_scalar_type(max(numbers)))
