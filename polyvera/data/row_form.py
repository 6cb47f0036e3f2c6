"""RowForm: the columns and values that a row may have, and how it becomes an example of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from types import MappingProxyType
from typing import Any

from polyvera.data.chat_turns import message_of, tools_in, unlearnt
from polyvera.data.row_files import Row, check_unicode
from polyvera.data.row_values import A_LIST, A_NUMBER, A_TEXT, AN_INT, is_list, says_something, text_in
from polyvera.errors import DataError
from polyvera.model.message import Conversation, Message, Tools
from polyvera.model.prompt import PLAIN, TEMPLATE, Prompt
from polyvera.model.task import (
    LABEL,
    LM,
    MULTI_LABEL,
    ORPO,
    PAIRS,
    PREFERENCE,
    REGRESSION,
    SCORE,
    SEQ2SEQ,
    SIMILARITY,
    TOKEN_LABEL,
)

LARGEST = 1e38  # of a number to learn
# Columns that say something of a conversation in the common formats.
CHAT_COLUMNS = ("functions", "tool_choice", "function_call", "documents", "system", "chat_template_kwargs")
TRUTHS = frozenset({"true", "false"})  # one name each, however a file writes them


@dataclass(frozen=True, slots=True)
class Example:
    """One row: what the model is given and what it should answer.

    row: its number in the source, from 1. prompt: '' for plain text, else a text or the turns before the last.
    answer: the completion, the last turn, the text or the label. refs: all right answers. pair: the second text.
    rejected: the answer that is worse than `answer`, or a text that is farther than `pair`. words: of a text whose
    words are labelled. labels: those that the row names, of the whole text or of each word. number: what a regression
    answers, or how alike two texts are. fields: more of the answer's turn. tools: that the model is told of. unlearnt:
    the turns of the assistant in a prompt that are no targets.
    """

    row: int
    prompt: str | tuple[Message, ...]
    answer: str
    refs: tuple[str, ...] = ()
    pair: str | None = None
    rejected: str = ""
    words: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    number: float = 0.0
    fields: tuple[tuple[str, Any], ...] = ()
    tools: Tools = ()
    unlearnt: tuple[int, ...] = ()

    @property
    def asked(self) -> Prompt:
        """The prompt, and the tools that the model is told of."""
        return self.prompt if isinstance(self.prompt, str) or not self.tools else Conversation(self.prompt, self.tools)

    @property
    def conversation(self) -> Conversation:
        """The turns of a chat, the answer among them, and the tools."""
        answer = Message("assistant", self.answer, self.fields)
        return Conversation((*(m for m in self.prompt if isinstance(m, Message)), answer), self.tools)

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


def _completion(number: int, row: Row) -> Example:
    refs = () if row.get("refs") is None else row["refs"]
    if not is_list(refs) or not all(isinstance(ref, str) for ref in refs):
        raise DataError("refs must be a list of strings")
    for ref in refs:
        check_unicode(ref, "refs")
    return Example(number, text_in(row, "prompt"), text_in(row, "completion"), tuple(refs))


def _chat(number: int, row: Row) -> Example:
    turns: Any = row.get("messages")
    if not is_list(turns) or len(turns) == 0:
        raise DataError("messages must be a list of turns")
    for column in CHAT_COLUMNS:
        if says_something(row.get(column)):
            raise DataError(f"the column {column!r} is not trained on: remove it, or write what it says into a turn")
    messages = tuple(message_of(number, turn) for number, turn in enumerate(turns, 1))
    if messages[-1].role != "assistant":
        raise DataError(f"the last turn is the {messages[-1].role}'s, so there is no answer to learn")
    if len(messages) == 1:
        raise DataError("the only turn is the assistant's: what does it answer?")
    silent = unlearnt(turns, messages)
    last = max((i for i, m in enumerate(messages) if i > 0 and m.role == "assistant" and i not in silent), default=0)
    if last == 0:
        raise DataError("weight is 0 for each of the assistant's turns, so there is nothing to learn")
    answer = messages[last]
    return Example(number, messages[:last], answer.content, fields=answer.fields, tools=tools_in(row), unlearnt=silent)


def _labelled(number: int, row: Row) -> Example:
    label = _name(row.get("label"), row, "label")
    return Example(number, text_in(row, "text"), label, pair=_pair(row), labels=(label,))


def _pair(row: Row) -> str | None:
    return text_in(row, "text_pair") if "text_pair" in row else None


def _name(value: Any, row: Row, column: str) -> str:
    """A label as its name, whichever way a file writes it."""
    label = str(value) if isinstance(value, int) else text_in({column: value} if column in row else {}, column)
    return label.lower() if label.lower() in TRUTHS else label


def _names(row: Row, column: str) -> tuple[str, ...]:
    values = row.get(column)
    if not is_list(values):
        raise DataError(f"{column} must be a list of labels")
    return tuple(_name(value, {column: value}, column) for value in values)  # type: ignore[union-attr]


def _several(number: int, row: Row) -> Example:
    values: Any = row.get("label")
    marks = [value for value in values if isinstance(value, int)] if is_list(values) else []
    if len({*marks}) < len(marks) or any(isinstance(mark, bool) for mark in marks):
        raise DataError('label has a yes or no for each label of a list: give the names of its own, ["art", "sport"]')
    names = tuple(dict.fromkeys(_names(row, "label")))
    return Example(number, text_in(row, "text"), "", pair=_pair(row), labels=names)


def _numbered(number: int, row: Row) -> Example:
    value = row.get("label")
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = nan
    if not isfinite(found):
        raise DataError(f"label={value!r} is not a finite number")
    if abs(found) > LARGEST:
        raise DataError(
            f"label={value!r} is larger than {LARGEST:g}, which no 32-bit number tells from infinity: scale it"
        )
    return Example(number, text_in(row, "text"), "", pair=_pair(row), labels=SCORE, number=found)


def _alike(number: int, row: Row) -> Example:
    text_in(row, "text_pair")
    return replace(_numbered(number, row), labels=())


def _paired(number: int, row: Row) -> Example:
    worse = text_in(row, "negative") if "negative" in row else ""
    return Example(number, text_in(row, "anchor"), "", pair=text_in(row, "positive"), rejected=worse)


def _tagged(number: int, row: Row) -> Example:
    words, tags = row.get("tokens"), _names(row, "tags")
    if not is_list(words) or not all(isinstance(word, str) and word.strip() for word in words):  # type: ignore[union-attr]
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
    prompt: Any = row.get("prompt")
    turns = (
        tuple(message_of(i, turn) for i, turn in enumerate(prompt, 1)) if is_list(prompt) else text_in(row, "prompt")
    )
    return Example(number, turns, answers[0], rejected=answers[1], tools=tools_in(row))


def _answer(row: Row, column: str) -> str:
    """An answer as a text, or as the one turn of the assistant that it is in a conversation."""
    value = row.get(column)
    if not is_list(value):
        return text_in(row, column)
    turns = [message_of(i, turn) for i, turn in enumerate(value, 1)]  # type: ignore[arg-type]
    if len(turns) != 1 or turns[0].role != "assistant" or turns[0].fields:
        raise DataError(f"{column} must be a text, or one turn of the assistant that follows the prompt, of text alone")
    return turns[0].content


def _plain(number: int, row: Row) -> Example:
    return Example(number, "", text_in(row, "text"))


FORMS: Mapping[str, RowForm] = MappingProxyType(
    {
        "completion": RowForm(
            LM, ("prompt", "completion"), ("refs",), _completion, chat="chat", prompt_form=PLAIN, apart=SEQ2SEQ
        ),
        SEQ2SEQ: RowForm(
            SEQ2SEQ, ("prompt", "completion"), ("refs",), _completion, prompt_form=PLAIN, apart=SEQ2SEQ, is_named=True
        ),
        "chat": RowForm(LM, ("messages",), ("tools",), _chat, chat="chat", prompt_form=TEMPLATE),
        LABEL: RowForm(LABEL, ("text", "label"), ("text_pair",), _labelled, frozenset({A_TEXT, AN_INT})),
        REGRESSION: RowForm(REGRESSION, ("text", "label"), ("text_pair",), _numbered, frozenset({A_NUMBER, AN_INT})),
        SIMILARITY: RowForm(SIMILARITY, ("text", "text_pair", "label"), (), _alike, frozenset({A_NUMBER, AN_INT})),
        MULTI_LABEL: RowForm(MULTI_LABEL, ("text", "label"), ("text_pair",), _several, frozenset({A_LIST})),
        TOKEN_LABEL: RowForm(TOKEN_LABEL, ("tokens", "tags"), (), _tagged),
        PREFERENCE: RowForm(PREFERENCE, ("prompt", "chosen", "rejected"), ("tools",), _preferred, chat=PREFERENCE),
        ORPO: RowForm(ORPO, ("prompt", "chosen", "rejected"), ("tools",), _preferred, chat=ORPO, is_named=True),
        PAIRS: RowForm(PAIRS, ("anchor", "positive"), ("negative",), _paired),
        "text": RowForm(LM, ("text",), (), _plain),
    }
)
