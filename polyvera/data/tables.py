"""read: rows of a file or a hub data set as examples, each checked; every complaint names the source and the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from polyvera.data.row_files import NumberedRow, Row, check_unicode, read_rows
from polyvera.errors import DataError, did_you_mean, message_of
from polyvera.model.config import LABEL, LM
from polyvera.model.prompt import PLAIN, TEMPLATE, Message, Prompt

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
SHOWN = 5
ROLES = ("system", "user", "assistant", "tool")
TURN_KEYS = ("role", "content")
# Columns that say something of a conversation in the common formats.
CHAT_COLUMNS = ("tools", "functions", "tool_choice", "function_call", "documents", "system", "chat_template_kwargs")
TRUTHS = frozenset({"true", "false"})  # one name each, however a file writes them


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

    @property
    def prompt_form(self) -> str:
        """How a model is asked: 'plain', 'chat' (through the chat template), or '' for classes."""
        return FORMS[self.kind].prompt_form


@dataclass(frozen=True, slots=True)
class RowForm:
    """One form of data: the columns it needs, those it may have, and how a row becomes an example.

    prompt_form: how a model is asked, '' where nobody asks.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    example: Callable[[int, Row], Example]
    prompt_form: str = PLAIN


def read(source: str | Path, columns: Mapping[str, str] = NO_COLUMNS, *, chat: bool = False) -> Table:
    """The examples of a .jsonl, .csv or .parquet file, of a folder, or of `hub/id:config@split`, in their order.

    columns: our name = the source's name. chat: prompt and completion become the two turns of a conversation. The form
    is found from the columns of all rows. Raises DataError that names the source and the rows.
    """
    return table(str(source), read_rows(str(source)), columns, chat=chat)


def table(
    name: str, numbered: Iterable[NumberedRow], columns: Mapping[str, str] = NO_COLUMNS, *, chat: bool = False
) -> Table:
    """The examples of rows that were read already, as `read` gives them. Raises DataError."""
    given = list(numbered)
    if not given:
        raise DataError(f"{name} has no rows")
    _check_columns(name, dict.fromkeys(column for _, row in given for column in row), columns)
    rows = [(number, _renamed(row, columns)) for number, row in given]
    kind = _kind(name, rows, columns)
    examples = tuple(_checked(name, rows, FORMS[kind].example))
    if chat and kind == "completion":
        kind, examples = "chat", tuple(replace(e, prompt=(Message("user", str(e.prompt)),)) for e in examples)
    elif chat and kind != "chat":
        raise DataError(f"{name}: chat=true is for prompt and completion, and these rows are {_shown(kind)}")
    return Table(name, kind, examples, _labels(examples) if kind == LABEL else ())


def grouped(source: str | Path, column: str) -> dict[str, list[NumberedRow]]:
    """The rows of a source, unchecked, by the text or number in one of its columns. Raises DataError."""
    groups: dict[str, list[NumberedRow]] = {}
    for number, row in read_rows(str(source)):
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


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    taken = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **taken}


def _kind(name: str, rows: Sequence[NumberedRow], columns: Mapping[str, str]) -> str:
    """The form of the rows, from the columns that any of them has. Raises DataError unless exactly one fits."""
    given = dict.fromkeys(column for _, row in rows for column in row)
    fitting = [kind for kind in FORMS if set(FORMS[kind].columns) <= set(given)]
    best = [k for k in fitting if not any(set(FORMS[k].columns) < set(FORMS[other].columns) for other in fitting)]
    best = [kind for kind in best if set(FORMS[kind].columns) <= set(columns)] or best
    if len(best) != 1:
        forms = "; ".join(_shown(kind) for kind in FORMS)
        fit = "fit none" if not best else "fit several"
        raise DataError(
            f"{name} has the columns {', '.join(given) or '(none)'}, which {fit} of the known forms ({forms})"
            f'{_other_row(rows)}; name them, for example columns = {{prompt = "input", completion = "output"}}'
        )
    return best[0]


def _check_columns(name: str, given: Iterable[str], columns: Mapping[str, str]) -> None:
    known = {column for kind in FORMS.values() for column in (*kind.columns, *kind.optional)}
    for ours, theirs in columns.items():
        if ours not in known:
            raise DataError(f"columns: {ours!r} must be one of: {', '.join(sorted(known))}{did_you_mean(ours, known)}")
        if theirs not in given:
            raise DataError(f"{name} has no column {theirs!r}; it has {', '.join(given)}{did_you_mean(theirs, given)}")


def _other_row(rows: Sequence[NumberedRow]) -> str:
    """The first row whose columns are not those of the first row, as a part of a message."""
    first, columns = rows[0]
    other = next(((number, row) for number, row in rows if set(row) != set(columns)), None)
    if other is None:
        return ""
    return f", row {first} with {', '.join(columns) or 'none'} and row {other[0]} with {', '.join(other[1]) or 'none'}"


def _shown(kind: str) -> str:
    return " + ".join(FORMS[kind].columns)


def _checked(name: str, rows: Sequence[NumberedRow], example: Callable[[int, Row], Example]) -> Iterator[Example]:
    problems = []
    for number, row in rows:
        try:
            yield example(number, row)
        except Exception as error:  # whatever a row raises is the row's fault
            problems.append(f"row {number}: {message_of(error)}")
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
    check_unicode(value, column)
    return value


def _completion(number: int, row: Row) -> Example:
    refs = () if row.get("refs") is None else row["refs"]
    if not _is_list(refs) or not all(isinstance(ref, str) for ref in refs):
        raise DataError("refs must be a list of strings")
    for ref in refs:
        check_unicode(ref, "refs")
    return Example(number, _text(row, "prompt"), _text(row, "completion"), tuple(refs))


def _chat(number: int, row: Row) -> Example:
    turns: Any = row.get("messages")
    if not _is_list(turns) or len(turns) == 0:
        raise DataError("messages must be a list of turns")
    for column in CHAT_COLUMNS:
        if _says_something(row.get(column)):
            raise DataError(f"the column {column!r} is not trained on: remove it, or write what it says into a turn")
    messages = tuple(_message(number, turn) for number, turn in enumerate(turns, 1))
    if messages[-1].role != "assistant":
        raise DataError(f"the last turn is the {messages[-1].role}'s, so there is no answer to learn")
    if len(messages) == 1:
        raise DataError("the only turn is the assistant's: what does it answer?")
    return Example(number, messages[:-1], messages[-1].content)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _message(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError("a turn must be an object with role and content")
    if turn.get("role") not in ROLES:
        raise DataError(f"role={turn.get('role')!r} must be one of: {', '.join(ROLES)}")
    other = next((key for key, value in turn.items() if key not in TURN_KEYS and _says_something(value)), None)
    if other is not None:
        raise DataError(
            f"turn {number}: {other!r} is not trained on, only role and content are: remove it, or write what it says "
            "into content"
        )
    return Message(turn["role"], _text(turn, "content"))


def _says_something(value: Any) -> bool:
    """Whether a value is more than the null or the empty list that fills up a column."""
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def _labelled(number: int, row: Row) -> Example:
    label = row.get("label")
    label = str(label) if isinstance(label, int) else _text(row, "label")
    label = label.lower() if label.lower() in TRUTHS else label
    pair = _text(row, "text_pair") if "text_pair" in row else None
    return Example(number, _text(row, "text"), label, pair=pair)


def _plain(number: int, row: Row) -> Example:
    return Example(number, "", _text(row, "text"))


FORMS: Mapping[str, RowForm] = MappingProxyType(
    {
        "completion": RowForm(("prompt", "completion"), ("refs",), _completion),
        "chat": RowForm(("messages",), (), _chat, TEMPLATE),
        LABEL: RowForm(("text", "label"), ("text_pair",), _labelled, ""),
        "text": RowForm(("text",), (), _plain),
    }
)


def _labels(examples: Iterable[Example]) -> tuple[str, ...]:
    names = {example.answer for example in examples}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:  # not all of them are numbers
        return tuple(sorted(names))
