"""RowForm: the columns and values that a row may have, and how it becomes an example of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from types import MappingProxyType
from typing import Any

import numpy as np

from polyvera.data.row_files import Row, check_unicode
from polyvera.errors import DataError
from polyvera.model.prompt import PLAIN, TEMPLATE, Message, Prompt
from polyvera.model.task import (
    LABEL,
    LM,
    MULTI_LABEL,
    ORPO,
    PAIRS,
    PREFERENCE,
    REGRESSION,
    SEQ2SEQ,
    SIMILARITY,
    TOKEN_LABEL,
)

SCORE = ("score",)  # what the one output of a regression is called
A_TEXT, AN_INT, A_NUMBER, A_LIST = "a text", "a whole number", "a number", "a list"
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
    rejected: the answer that is worse than `answer`, or a text that is farther than `pair`. words: of a text whose
    words are labelled. labels: those that the row names, of the whole text or of each word. number: what a regression
    answers, or how alike two texts are.
    """

    row: int
    prompt: Prompt
    answer: str
    refs: tuple[str, ...] = ()
    pair: str | None = None
    rejected: str = ""
    words: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    number: float = 0.0

    @property
    def right(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.refs or (self.answer,)


@dataclass(frozen=True, slots=True)
class RowForm:
    """One form of data: the columns it needs, those it may have, and how a row becomes an example.

    task: what such rows are for. values: what the last column holds, where other forms have that column, too.
    chat: the form that the rows become where prompts are turns of a conversation, '' where they have none. prompt_form:
    how a model is asked, '' where nobody asks. apart: the form that the rows become where the model has a decoder for
    the answers, '' where they have none. is_named: whether rows are of this form only where their task is given.
    """

    task: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    example: Callable[[int, Row], Example]
    values: frozenset[str] = frozenset()
    chat: str = ""
    prompt_form: str = ""
    apart: str = ""
    is_named: bool = False


def value_form(value: Any) -> str:
    """Which of the four forms of values it is of."""
    if _is_list(value):
        return A_LIST
    return A_NUMBER if isinstance(value, float) else AN_INT if isinstance(value, int) else A_TEXT


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
    label = _name(row.get("label"), row, "label")
    return Example(number, _text(row, "text"), label, pair=_pair(row), labels=(label,))


def _pair(row: Row) -> str | None:
    return _text(row, "text_pair") if "text_pair" in row else None


def _name(value: Any, row: Row, column: str) -> str:
    """A label as its name, whichever way a file writes it."""
    label = str(value) if isinstance(value, int) else _text({column: value} if column in row else {}, column)
    return label.lower() if label.lower() in TRUTHS else label


def _names(row: Row, column: str) -> tuple[str, ...]:
    values = row.get(column)
    if not _is_list(values):
        raise DataError(f"{column} must be a list of labels")
    return tuple(_name(value, {column: value}, column) for value in values)  # type: ignore[union-attr]


def _several(number: int, row: Row) -> Example:
    names = tuple(dict.fromkeys(_names(row, "label")))
    return Example(number, _text(row, "text"), "", pair=_pair(row), labels=names)


def _numbered(number: int, row: Row) -> Example:
    value = row.get("label")
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = nan
    if not isfinite(found):
        raise DataError(f"label={value!r} is not a finite number")
    return Example(number, _text(row, "text"), "", pair=_pair(row), labels=SCORE, number=found)


def _alike(number: int, row: Row) -> Example:
    _text(row, "text_pair")
    return replace(_numbered(number, row), labels=())


def _paired(number: int, row: Row) -> Example:
    worse = _text(row, "negative") if "negative" in row else ""
    return Example(number, _text(row, "anchor"), "", pair=_text(row, "positive"), rejected=worse)


def _tagged(number: int, row: Row) -> Example:
    words, tags = row.get("tokens"), _names(row, "tags")
    if not _is_list(words) or not all(isinstance(word, str) and word.strip() for word in words):  # type: ignore[union-attr]
        raise DataError("tokens must be a list of words, none of them empty")
    if len(words) != len(tags) or not tags:  # type: ignore[arg-type]
        raise DataError(f"{len(words)} tokens and {len(tags)} tags: each token has one tag")  # type: ignore[arg-type]
    for word in words:  # type: ignore[union-attr]
        check_unicode(word, "tokens")
    return Example(number, " ".join(words), "", words=tuple(words), labels=tags)  # type: ignore[arg-type]


def _preferred(number: int, row: Row) -> Example:
    answers = [_answer(row, column) for column in ("chosen", "rejected")]
    if answers[0] == answers[1]:
        raise DataError("chosen and rejected are the same text, so there is nothing to prefer")
    prompt = row.get("prompt")
    turns = tuple(_message(i, turn) for i, turn in enumerate(prompt, 1)) if _is_list(prompt) else _text(row, "prompt")  # type: ignore[arg-type]
    return Example(number, turns, answers[0], rejected=answers[1])


def _answer(row: Row, column: str) -> str:
    """An answer as a text, or as the one turn of the assistant that it is in a conversation."""
    value = row.get(column)
    if not _is_list(value):
        return _text(row, column)
    turns = [_message(i, turn) for i, turn in enumerate(value, 1)]  # type: ignore[arg-type]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise DataError(f"{column} must be a text, or one turn of the assistant that follows the prompt")
    return turns[0].content


def _plain(number: int, row: Row) -> Example:
    return Example(number, "", _text(row, "text"))


FORMS: Mapping[str, RowForm] = MappingProxyType(
    {
        "completion": RowForm(
            LM, ("prompt", "completion"), ("refs",), _completion, chat="chat", prompt_form=PLAIN, apart=SEQ2SEQ
        ),
        SEQ2SEQ: RowForm(
            SEQ2SEQ, ("prompt", "completion"), ("refs",), _completion, prompt_form=PLAIN, apart=SEQ2SEQ, is_named=True
        ),
        "chat": RowForm(LM, ("messages",), (), _chat, chat="chat", prompt_form=TEMPLATE),
        LABEL: RowForm(LABEL, ("text", "label"), ("text_pair",), _labelled, frozenset({A_TEXT, AN_INT})),
        REGRESSION: RowForm(REGRESSION, ("text", "label"), ("text_pair",), _numbered, frozenset({A_NUMBER, AN_INT})),
        SIMILARITY: RowForm(SIMILARITY, ("text", "text_pair", "label"), (), _alike, frozenset({A_NUMBER, AN_INT})),
        MULTI_LABEL: RowForm(MULTI_LABEL, ("text", "label"), ("text_pair",), _several, frozenset({A_LIST})),
        TOKEN_LABEL: RowForm(TOKEN_LABEL, ("tokens", "tags"), (), _tagged),
        PREFERENCE: RowForm(PREFERENCE, ("prompt", "chosen", "rejected"), (), _preferred, chat=PREFERENCE),
        ORPO: RowForm(ORPO, ("prompt", "chosen", "rejected"), (), _preferred, chat=ORPO, is_named=True),
        PAIRS: RowForm(PAIRS, ("anchor", "positive"), ("negative",), _paired),
        "text": RowForm(LM, ("text",), (), _plain),
    }
)
