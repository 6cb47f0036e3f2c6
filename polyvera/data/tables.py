"""read: rows of a file or a hub data set as examples, each checked; every complaint names the source and the row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from polyvera.data.label_span import ITSELF, SPANS, Span
from polyvera.data.row_files import NumberedRow, Row, read_rows
from polyvera.data.row_form import FORMS, Example
from polyvera.data.row_values import A_NUMBER, says_something, value_form
from polyvera.errors import DataError, did_you_mean, message_of
from polyvera.model.config import CAUSAL_LM, ENCODER_DECODER, kind_of
from polyvera.model.message import Message
from polyvera.model.task import SEQ2SEQ, TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
SHOWN, SHOWN_COLUMNS = 5, 10
# Other names of a column in the common formats: theirs = ours, where ours is not there.
SYNONYMS: Mapping[str, str] = MappingProxyType({"labels": "label", "words": "tokens", "ner_tags": "tags"})


@dataclass(frozen=True, slots=True)
class Table:
    """The examples of one source.

    kind: a key of FORMS. labels: the label names, in the order of their numbers. span: of labels that are numbers, the
    two that the loss takes for 0 and 1. unread: the columns that such rows do not use, and in how many rows each says
    something.
    """

    source: str
    kind: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    span: Span = ITSELF
    unread: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def task(self) -> str:
        """What the rows are for, a key of TASKS, as load_base() takes it."""
        return FORMS[self.kind].task

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that all of its rows have."""
        return FORMS[self.kind].columns

    @property
    def unread_text(self) -> str:
        """The columns that are not read, in one line; '' where all are."""
        shown = ", ".join(f"{column} ({num:,} row{'s' * (num > 1)})" for column, num in self.unread[:SHOWN_COLUMNS])
        more = len(self.unread) - SHOWN_COLUMNS
        return shown and f"{self.source}: columns not read: {shown}{f' and {more} more' if more > 0 else ''}"

    @property
    def head_text(self) -> str:
        """What a head is trained for, in one line."""
        if self.row.span:
            return f"rows are for {self.task}: their labels are numbers"
        more = ", ..." if len(self.labels) > SHOWN else ""
        return f"rows are for {self.task}: {len(self.labels)} classes ({', '.join(self.labels[:SHOWN])}{more})"

    @property
    def row(self) -> Task:
        """The row of that task."""
        return TASKS[self.task]

    def suited(self, model: PreTrainedModel) -> Table:
        """The same rows as that model reads them. Raises DataError for those that it cannot read."""
        if kind_of(model) != ENCODER_DECODER or self.row.kind not in (CAUSAL_LM, ENCODER_DECODER):
            return self
        apart = FORMS[self.kind].apart
        if not apart:
            raise DataError(
                f"{self.source} holds {_shown(self.kind)}, and {type(model).__name__} is an encoder-decoder, which "
                f"takes {_shown(SEQ2SEQ)}"
            )
        return replace(self, kind=apart)

    @property
    def prompt_form(self) -> str:
        """How a model is asked: 'plain', 'chat' (through the chat template), or '' for classes."""
        return FORMS[self.kind].prompt_form


def read(
    source: str | Path, columns: Mapping[str, str] = NO_COLUMNS, *, chat: bool = False, task: str | None = None
) -> Table:
    """The examples of a .jsonl, .csv or .parquet file, of a folder, or of `hub/id:config@split`, in their order.

    columns: our name = the source's name. chat: a prompt becomes the user's turn of a conversation. task: what the rows
    are for; None finds it, and their form, from the columns and values of all rows. Raises DataError that names the
    source and the rows.
    """
    return table(str(source), read_rows(str(source)), columns, chat=chat, task=task)


def table(
    name: str,
    numbered: Iterable[NumberedRow],
    columns: Mapping[str, str] = NO_COLUMNS,
    *,
    chat: bool = False,
    task: str | None = None,
) -> Table:
    """The examples of rows that were read already, as `read` gives them. Raises DataError."""
    given = list(numbered)
    if not given:
        raise DataError(f"{name} has no rows")
    if task not in (None, *TASKS):
        raise DataError(f"task={task!r} must be one of: {', '.join(TASKS)}{did_you_mean(str(task), TASKS)}")
    there = dict.fromkeys(column for _, row in given for column in row)
    _check_columns(name, there, columns)
    named = {ours: theirs for theirs, ours in SYNONYMS.items() if theirs in there and ours not in there} | {**columns}
    rows = [(number, _renamed(row, named)) for number, row in given]
    kind = _kind(name, rows, columns, task)
    examples = tuple(_checked(name, rows, FORMS[kind].example))
    if chat:
        kind, examples = _as_chat(name, kind, examples)
    return Table(name, kind, examples, _labels(examples), _span(kind, examples), _unread(kind, rows))


def _unread(kind: str, rows: Iterable[NumberedRow]) -> tuple[tuple[str, int], ...]:
    """The columns that rows of this form do not use, and in how many rows each says something."""
    known = {*FORMS[kind].columns, *FORMS[kind].optional}
    said = (column for _, row in rows for column, value in row.items() if column not in known and says_something(value))
    return tuple(Counter(said).items())


def _as_chat(name: str, kind: str, examples: tuple[Example, ...]) -> tuple[str, tuple[Example, ...]]:
    """The form and the examples with each prompt as a turn. Raises DataError for rows without prompts."""
    chat = FORMS[kind].chat
    if not chat:
        raise DataError(f"{name}: chat=true is for prompt and completion, and these rows are {_shown(kind)}")
    turns = ((Message("user", e.prompt),) if isinstance(e.prompt, str) else e.prompt for e in examples)
    return chat, tuple(replace(e, prompt=prompt) for e, prompt in zip(examples, turns, strict=True))


def grouped(source: str | Path, column: str) -> dict[str, list[NumberedRow]]:
    """The rows of a source, unchecked, by the text or number in one of its columns. Raises DataError."""
    groups: dict[str, list[NumberedRow]] = {}
    for number, row in read_rows(str(source)):
        name = row.get(column)
        if not isinstance(name, str | int) or name == "":
            wrong = f"; it is {name!r}" if column in row else did_you_mean(column, row)
            raise DataError(f"{source}, row {number}: no adapter's name in the column {column!r}{wrong}")
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
    """`other` with `table`'s labels and span. Raises DataError for another form or a label that `table` lacks."""
    if other.kind != table.kind:
        raise DataError(f"{other.source} holds {_shown(other.kind)}, and {table.source} holds {_shown(table.kind)}")
    unknown = [label for label in other.labels if label not in table.labels]
    if unknown:
        near = did_you_mean(unknown[0], table.labels)
        raise DataError(f"{other.source} has the label {unknown[0]!r}, which {table.source} lacks{near}")
    return replace(other, labels=table.labels, span=table.span)


def _span(kind: str, examples: Iterable[Example]) -> Span:
    find = SPANS.get(TASKS[FORMS[kind].task].span)
    return ITSELF if find is None else find([example.number for example in examples])


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    taken = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **taken}


def _kind(name: str, rows: Sequence[NumberedRow], columns: Mapping[str, str], task: str | None) -> str:
    """The form of the rows, from what columns and values any of them has. Raises DataError unless exactly one fits."""
    given = dict.fromkeys(column for _, row in rows for column in row)
    known = [kind for kind, form in FORMS.items() if task in (None, form.task) and (task or not form.is_named)]
    fitting = [kind for kind in known if set(FORMS[kind].columns) <= set(given)]
    if task is None:
        fitting = _by_values(name, rows, fitting)
    best = [k for k in fitting if not any(set(FORMS[k].columns) < set(FORMS[other].columns) for other in fitting)]
    best = [kind for kind in best if set(FORMS[kind].columns) <= set(columns)] or best
    if len(best) != 1:
        forms = "; ".join(dict.fromkeys(_shown(kind) for kind in known))
        fit = "fit none" if not best else "fit several"
        raise DataError(
            f"{name} has the columns {', '.join(given) or '(none)'}, which {fit} of the known forms "
            f"{'' if task is None else f'of task={task!r} '}({forms})"
            f'{_other_row(rows)}; name them, for example columns = {{prompt = "input", completion = "output"}}'
        )
    return best[0]


def _by_values(name: str, rows: Sequence[NumberedRow], kinds: Sequence[str]) -> list[str]:
    """The forms whose values stand in the column that decides; whole numbers alone are classes, the first of them.

    Raises DataError for values of several forms.
    """
    deciding = [kind for kind in kinds if FORMS[kind].values]
    if not deciding:
        return [*kinds]
    column = FORMS[deciding[0]].columns[-1]
    first: dict[str, int] = {}
    for number, row in rows:
        if row.get(column) is not None:
            first.setdefault(value_form(row[column]), number)
    fitting = [kind for kind in deciding if set(first) <= FORMS[kind].values]
    if not fitting:
        found = " and ".join(f"{what} in row {number}" for what, number in first.items())
        raise DataError(f"{name} has {found} as {column}: give all rows one kind of {column}")
    chosen = fitting if A_NUMBER in first else fitting[:1]
    return [kind for kind in kinds if kind in chosen or not FORMS[kind].values]


def _check_columns(name: str, given: Iterable[str], columns: Mapping[str, str]) -> None:
    known = {column for form in FORMS.values() for column in (*form.columns, *form.optional)}
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


def _labels(examples: Iterable[Example]) -> tuple[str, ...]:
    names = {label for example in examples for label in example.labels}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:  # not all of them are numbers
        return tuple(sorted(names))
