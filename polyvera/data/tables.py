"""read: rows of a file or a hub data set as examples, each checked; every complaint names the source and the row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from polyvera.errors import DataError, did_you_mean
from polyvera.model.config import LABEL, LM
from polyvera.model.prompt import Message, Prompt

Row = Mapping[str, Any]
NumberedRow = tuple[int, Row]
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
SHOWN = 5
HUB = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<split>.+))?")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: what the model is given and what it should answer.

    row: its number in the source, from 1. prompt: '' for plain text, else a text or the turns before the last.
    answer: the completion, the last turn, the text or the label. refs: all right answers. pair: the second text.
    """

    row: int
    prompt: Prompt
    answer: str
    refs: tuple[str, ...] = ()
    pair: str | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.refs or (self.answer,)


@dataclass(frozen=True, slots=True)
class Table:
    """The examples of one source. kind: a key of FORMS. labels: the label names, in the order of their numbers."""

    source: str
    kind: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def task(self) -> str:
        """The task of a base model that answers these rows, as load_base() takes it."""
        return LABEL if self.kind == LABEL else LM


@dataclass(frozen=True, slots=True)
class RowForm:
    """One form of data: the columns it needs, those it may have, and how a row becomes an example."""

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    example: Callable[[int, Row], Example]


def read(source: str | Path, columns: Mapping[str, str] = NO_COLUMNS, *, chat: bool = False) -> Table:
    """The examples of a .jsonl, .csv or .parquet file, of a folder, or of `hub/id:config@split`, in their order.

    columns: our name = the source's name. chat: prompt and completion become the two turns of a conversation. The form
    is found from the columns. Raises DataError that names the source and the rows.
    """
    return table(str(source), _rows(str(source)), columns, chat=chat)


def table(
    name: str, numbered: Iterable[NumberedRow], columns: Mapping[str, str] = NO_COLUMNS, *, chat: bool = False
) -> Table:
    """The examples of rows that were read already, as `read` gives them. Raises DataError."""
    rows = [(number, _renamed(row, columns)) for number, row in numbered]
    if not rows:
        raise DataError(f"{name} has no rows")
    kind = _kind(name, rows[0][1], columns)
    examples = tuple(_checked(name, rows, FORMS[kind].example))
    if chat and kind == "completion":
        kind, examples = "chat", tuple(replace(e, prompt=(Message("user", str(e.prompt)),)) for e in examples)
    elif chat and kind != "chat":
        raise DataError(f"{name}: chat=true is for prompt and completion, and these rows are {_shown(kind)}")
    return Table(name, kind, examples, _labels(examples) if kind == LABEL else ())


def grouped(source: str | Path, column: str) -> dict[str, list[NumberedRow]]:
    """The rows of a source, unchecked, by the text or number in one of its columns. Raises DataError."""
    groups: dict[str, list[NumberedRow]] = {}
    for number, row in _rows(str(source)):
        name = row.get(column)
        if not isinstance(name, str | int) or name == "":
            near = did_you_mean(column, row)
            raise DataError(f"{source}, row {number}: no adapter's name in the column {column!r}{near}")
        groups.setdefault(str(name), []).append((number, {k: v for k, v in row.items() if k != column}))
    if not groups:
        raise DataError(f"{source} has no rows")
    return groups


def split(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    """(training, validation) rows, disjoint, the same for the same seed everywhere. Raises DataError if too few."""
    num_held_out = round(fraction * len(table))
    if not 0 < num_held_out < len(table):
        raise DataError(f"{table.source}: a validation of {fraction:g} of {len(table)} rows leaves one side empty")
    shuffled = np.random.RandomState(seed).permutation(len(table))
    parts = (sorted(shuffled[num_held_out:]), sorted(shuffled[:num_held_out]))
    first, second = (replace(table, examples=tuple(table.examples[i] for i in part)) for part in parts)
    return first, second


def drawn(table: Table, num_rows: int, seed: int) -> Table:
    """So many of the rows (all where there are no more), in their order, the same for the same seed everywhere."""
    if num_rows >= len(table):
        return table
    kept = sorted(np.random.RandomState([seed, num_rows]).permutation(len(table))[:num_rows])
    return replace(table, examples=tuple(table.examples[i] for i in kept))


def alike(table: Table, other: Table) -> Table:
    """`other` with the labels of `table`. Raises DataError for another form or a label that `table` lacks."""
    if other.kind != table.kind:
        raise DataError(f"{other.source} holds {_shown(other.kind)}, and {table.source} holds {_shown(table.kind)}")
    unknown = [label for label in other.labels if label not in table.labels]
    if unknown:
        near = did_you_mean(unknown[0], table.labels)
        raise DataError(f"{other.source} has the label {unknown[0]!r}, which {table.source} lacks{near}")
    return replace(other, labels=table.labels)


def _rows(name: str) -> Iterator[NumberedRow]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _hub_rows(name)
    if path.suffix in READERS:
        if not path.is_file():
            near = did_you_mean(path.name, (p.name for p in path.parent.glob("*")))
            raise DataError(f"there is no file {name}{near}")
        return READERS[path.suffix](path)
    if path.exists() or not HUB.fullmatch(name) or name[0] in "./~":
        known = ", ".join(READERS)
        raise DataError(
            f"cannot read {name}: files must end in {known}, and it is not the name of a data set on the hub"
        )
    return _hub_rows(name)


def _jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {number}: not valid JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: a {type(row).__name__}, where an object with columns is wanted")
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, row {number}: not UTF-8 at byte {error.start}; save the file as UTF-8"
                ) from error


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True, restkey="")
    try:
        header = reader.fieldnames or ()
        if len(set(header)) < len(header):
            raise DataError(f"{path}: the header names a column twice: {', '.join(header)}")
        for number, row in enumerate(reader, 1):
            if "" in row or None in row.values():
                raise DataError(f"{path}, row {number}: not the {len(header)} fields that the header names")
            yield number, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    parquet: Any = import_module("pyarrow.parquet")
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a valid Parquet file: {error}") from error


def _hub_rows(name: str) -> Iterator[NumberedRow]:
    import datasets

    found = HUB.fullmatch(name)
    asked = found.groupdict() if found else {"name": name, "config": None, "split": None}
    try:
        rows = datasets.load_dataset(asked["name"], asked["config"], split=asked["split"] or "train")
    except Exception as error:  # the hub's client raises errors of many libraries
        raise DataError(f"{name} could not be loaded as a data set: {type(error).__name__}: {error}") from error
    yield from enumerate(rows, 1)


READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    taken = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **taken}


def _kind(name: str, row: Row, columns: Mapping[str, str]) -> str:
    known = {column for kind in FORMS.values() for column in (*kind.columns, *kind.optional)}
    for ours, theirs in columns.items():
        if ours not in known:
            raise DataError(f"columns: {ours!r} must be one of: {', '.join(sorted(known))}{did_you_mean(ours, known)}")
        if ours not in row:
            raise DataError(f"{name} has no column {theirs!r}; it has {', '.join(row)}{did_you_mean(theirs, row)}")
    fitting = [kind for kind in FORMS if set(FORMS[kind].columns) <= set(row)]
    best = [k for k in fitting if not any(set(FORMS[k].columns) < set(FORMS[other].columns) for other in fitting)]
    best = [kind for kind in best if set(FORMS[kind].columns) <= set(columns)] or best
    if len(best) != 1:
        forms = "; ".join(_shown(kind) for kind in FORMS)
        fit = "fit none" if not best else "fit several"
        raise DataError(
            f"{name} has the columns {', '.join(row) or '(none)'}, which {fit} of the known forms ({forms}); name "
            'them, for example columns = {prompt = "input", completion = "output"}'
        )
    return best[0]


def _shown(kind: str) -> str:
    return " + ".join(FORMS[kind].columns)


def _checked(name: str, rows: Sequence[NumberedRow], example: Callable[[int, Row], Example]) -> Iterator[Example]:
    problems = []
    for number, row in rows:
        try:
            yield example(number, row)
        except DataError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more rows" if len(problems) > SHOWN else ""
        raise DataError(f"{name}, {'; '.join(problems[:SHOWN])}{more}")


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        what = (
            "missing"
            if column not in row
            else "null"
            if value is None
            else f"of type {type(value).__name__}, not a string"
        )
        raise DataError(f"{column} is {what}")
    if not value.strip():
        raise DataError(f"{column} is empty")
    return value


def _completion(number: int, row: Row) -> Example:
    refs = row.get("refs") or ()
    if isinstance(refs, str) or not all(isinstance(ref, str) for ref in refs):
        raise DataError("refs must be a list of strings")
    return Example(number, _text(row, "prompt"), _text(row, "completion"), tuple(refs))


def _chat(number: int, row: Row) -> Example:
    turns = row.get("messages")
    if not isinstance(turns, Sequence | np.ndarray) or isinstance(turns, str) or len(turns) == 0:
        raise DataError("messages must be a list of turns")
    messages = tuple(_message(turn) for turn in turns)
    if messages[-1].role != "assistant":
        raise DataError(f"the last turn is the {messages[-1].role}'s, so there is no answer to learn")
    if len(messages) == 1:
        raise DataError("the only turn is the assistant's: what does it answer?")
    return Example(number, messages[:-1], messages[-1].content)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError("a turn must be an object with role and content")
    if turn.get("role") not in ROLES:
        raise DataError(f"role={turn.get('role')!r} must be one of: {', '.join(ROLES)}")
    return Message(turn["role"], _text(turn, "content"))


def _labelled(number: int, row: Row) -> Example:
    label = row.get("label")
    label = str(label) if isinstance(label, int) else _text(row, "label")
    pair = _text(row, "text_pair") if "text_pair" in row else None
    return Example(number, _text(row, "text"), label, pair=pair)


def _plain(number: int, row: Row) -> Example:
    return Example(number, "", _text(row, "text"))


FORMS: Mapping[str, RowForm] = MappingProxyType(
    {
        "completion": RowForm(("prompt", "completion"), ("refs",), _completion),
        "chat": RowForm(("messages",), (), _chat),
        LABEL: RowForm(("text", "label"), ("text_pair",), _labelled),
        "text": RowForm(("text",), (), _plain),
    }
)


def _labels(examples: Iterable[Example]) -> tuple[str, ...]:
    names = {example.answer for example in examples}
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
