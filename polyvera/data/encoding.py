"""Encoded: the rows of a table as tokens and labels.

A prompt, made as model/prompt.py makes it for everyone, and its answer are tokenized apart and joined; the end token
closes each answer and is a target of the loss, as the answer is. A row of two answers is both sequences end to end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polyvera.data.label_span import ITSELF, Span, scaled
from polyvera.data.row_files import blaming
from polyvera.data.row_form import Example
from polyvera.data.shown_fields import check_shown
from polyvera.data.tables import SHOWN, Table
from polyvera.errors import DataError, PromptError
from polyvera.model.message import Conversation, Message
from polyvera.model.prompt import (
    bare_ids,
    chat_text,
    check_ids,
    passage,
    prompt_ids,
    target_ids,
    template_ids,
    words_passage,
)
from polyvera.model.special_tokens import special_tokens
from polyvera.model.task import LM, TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that are all targets of the loss, or all only read."""

    ids: list[int]
    is_target: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token rows of one table.

    shortened, skipped: row numbers of the source. max_length: what they had to fit. task: what they are for. span: of
    the table.
    """

    rows: tuple[dict[str, Any], ...]
    shortened: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    max_length: int | None = None
    task: Task = TASKS[LM]
    span: Span = ITSELF

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    @property
    def sha256(self) -> str:
        """Of every token and label, in order."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.rows]


def encode(
    table: Table,
    tokenizer: Tokenizer,
    max_length: int | None,
    *,
    num_tokens: int | None = None,
    turns: str = "all",
    too_long: str = "error",
) -> Encoded:
    """The rows as `input_ids` and `labels`, at most max_length tokens each (None: any number).

    A prompt that doesn't fit is shortened from the left. too_long: 'error' or 'skip' for a row whose answer alone
    doesn't fit. turns: 'all' or 'last', the assistant turns that are targets. num_tokens: how many tokens the model
    has embeddings for, None for no check. Raises DataError.
    """
    rows, shortened, refused = [], [], []
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    encoder = ENCODERS[table.row.encoding]
    for example in table.examples:
        with blaming(f"{table.source}, row {example.row}"):
            whole = encoder.segments(tokenizer, example, turns)
            _check_learnable(whole, around)
            for segment in whole if num_tokens is not None else ():
                check_ids(tokenizer, segment.ids, num_tokens or 0)
            row = encoder.fitted(Cut(table, example, tokenizer, max_length), whole)
        if row is None:
            refused.append(example.row)
            continue
        rows.append(row)
        if _num_kept(row, table.row) < sum(len(segment.ids) for segment in whole):
            shortened.append(example.row)
    if refused and (too_long == "error" or not rows):
        raise DataError(_refusal(table, refused, max_length))
    return Encoded(tuple(rows), tuple(shortened), tuple(refused), max_length, table.row, table.span)


@dataclass(frozen=True, slots=True)
class Cut:
    """One row that is to have at most max_length tokens, None for any number."""

    table: Table
    example: Example
    tokenizer: Tokenizer
    max_length: int | None

    def passage(self) -> dict[str, Any]:
        """Its text, or two texts, cut at the end."""
        return passage(self.tokenizer, str(self.example.prompt), self.example.pair, self.max_length)

    def number_of(self, label: str) -> int:
        """The output that a label is."""
        return self.table.labels.index(label)


@dataclass(frozen=True, slots=True)
class Encoder:
    """One way of making tokens of a row: all of it, and what of it fits, None where its answer alone does not."""

    segments: Callable[[Tokenizer, Example, str], list[Segment]]
    fitted: Callable[[Cut, list[Segment]], dict[str, Any] | None]


def _passage(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    return [Segment(passage(tokenizer, str(example.prompt), example.pair)["input_ids"], is_target=True)]


def _words(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    return [Segment(words_passage(tokenizer, example.words)[0]["input_ids"], is_target=True)]


def _tagged(cut: Cut, whole: list[Segment]) -> dict[str, Any]:
    """The first token of each word has its tag as its label; a word that the tokenizer drops has none."""
    row, words = words_passage(cut.tokenizer, cut.example.words, cut.max_length)
    first = [word is not None and word not in words[:i] for i, word in enumerate(words)]
    tags = [IGNORED if word is None else cut.number_of(cut.example.labels[word]) for word in words]
    return row | {"labels": [tag if is_first else IGNORED for tag, is_first in zip(tags, first, strict=True)]}


def _compared(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    """Prompt, chosen answer, prompt, rejected answer."""
    other = replace(example, answer=example.rejected)
    return [segment for one in (example, other) for segment in _continuation(tokenizer, one, "last")]


def _both(cut: Cut, whole: list[Segment]) -> dict[str, Any] | None:
    """The two sequences end to end; parts: the tokens of each."""
    half = len(whole) // 2
    rows = [_continued(cut, segments) for segments in (whole[:half], whole[half:])]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return None
    joined = {name: [n for row in found for n in row[name]] for name in found[0]}
    return joined | {"parts": [len(row["input_ids"]) for row in found]}


def _texts(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    several = (str(example.prompt), example.pair or "", example.rejected)
    return [Segment(passage(tokenizer, text)["input_ids"], is_target=True) for text in several if text]


def _side_by_side(cut: Cut, whole: list[Segment]) -> dict[str, Any]:
    """Two or three texts end to end, each cut at the end; parts: the tokens of each; labels: from 0 to 1."""
    if bool(cut.example.rejected) != bool(cut.table.examples[0].rejected):
        raise DataError("negative is in some rows and not in others: give it in all or none")
    several = (str(cut.example.prompt), cut.example.pair or "", cut.example.rejected)
    rows = [passage(cut.tokenizer, text, None, cut.max_length) for text in several if text]
    joined: dict[str, Any] = {name: [n for row in rows for n in row[name]] for name in rows[0]}
    return joined | {
        "labels": scaled(cut.example.number, cut.table.span),
        "parts": [len(row["input_ids"]) for row in rows],
    }


def _source_and_target(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    _check_no_end(tokenizer, example.answer)
    source = passage(tokenizer, str(example.prompt))["input_ids"]
    return [Segment(source, is_target=False), Segment(target_ids(tokenizer, example.answer), is_target=True)]


def _apart(cut: Cut, whole: list[Segment]) -> dict[str, Any] | None:
    """The prompt, cut at its end, and the answer, None where that does not fit."""
    answer = whole[-1].ids
    fits = cut.max_length is None or len(answer) <= cut.max_length
    return {"input_ids": cut.passage()["input_ids"], "labels": answer} if fits else None


def _num_kept(row: Mapping[str, Any], task: Task) -> int:
    return len(row["input_ids"]) + (len(row["labels"]) if task.answers_apart else 0)


def _check_no_end(tokenizer: Tokenizer, answer: str) -> None:
    if tokenizer.eos_token_id in bare_ids(tokenizer, answer)[:-1]:
        raise DataError(f"completion contains {tokenizer.eos_token!r} before its end, where the answer would end")


def _continuation(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    if not example.prompt:
        return [Segment(_closed(tokenizer, prompt_ids(tokenizer, example.answer)), is_target=True)]
    if isinstance(example.prompt, str):
        _check_no_end(tokenizer, example.answer)
        answer = _closed(tokenizer, bare_ids(tokenizer, example.answer))
        return [Segment(prompt_ids(tokenizer, example.prompt), is_target=False), Segment(answer, is_target=True)]
    return _conversation(tokenizer, example, turns)


def _continued(cut: Cut, segments: list[Segment]) -> dict[str, Any] | None:
    """The tokens, cut on the left, or None where the answer doesn't fit behind a single token of its prompt."""
    tokenizer, max_length = cut.tokenizer, cut.max_length
    ids = [token for segment in segments for token in segment.ids]
    labels = [token if segment.is_target else IGNORED for segment in segments for token in segment.ids]
    if max_length is None or len(ids) <= max_length:
        return {"input_ids": ids, "labels": labels}
    if len(segments[-1].ids) + (len(segments) > 1) > max_length:
        return None
    kept = 1 if ids[0] == tokenizer.bos_token_id and len(segments[-1].ids) + 1 < max_length else 0
    return {
        name: part[:kept] + part[len(ids) - max_length + kept :]
        for name, part in (("input_ids", ids), ("labels", labels))
    }


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "continuation": Encoder(_continuation, _continued),
        "source and target": Encoder(_source_and_target, _apart),
        "class": Encoder(_passage, lambda cut, whole: cut.passage() | {"labels": cut.number_of(cut.example.answer)}),
        "number": Encoder(
            _passage, lambda cut, whole: cut.passage() | {"labels": scaled(cut.example.number, cut.table.span)}
        ),
        "set": Encoder(
            _passage,
            lambda cut, whole: cut.passage() | {"labels": [int(n in cut.example.labels) for n in cut.table.labels]},
        ),
        "tags": Encoder(_words, _tagged),
        "preference": Encoder(_compared, _both),
        "texts": Encoder(_texts, _side_by_side),
    }
)


def _check_learnable(segments: Sequence[Segment], around: Collection[int | None]) -> None:
    """Raises DataError where nothing is read, or a target has no tokens but those that stand around each text."""
    if not segments[0].ids:
        raise DataError("its first text has no tokens, so there is nothing to read")
    if any(set(segment.ids) <= set(around) for segment in segments if segment.is_target):
        raise DataError("its text or answer has no tokens, so there is nothing to learn")


def _conversation(tokenizer: Tokenizer, example: Example, turns: str) -> list[Segment]:
    """The text up to each target turn and the turn itself, each tokenized apart as generation would have it."""
    whole = example.conversation
    _check_texts(tokenizer, whole.messages)
    check_shown(tokenizer, whole)
    found: list[Segment] = []
    last, done = len(whole.messages) - 1, ""
    for i, message in enumerate(whole.messages):
        is_learnt = message.role == "assistant" and i > 0 and i not in example.unlearnt
        if is_learnt and (i == last or turns == "all"):
            before = chat_text(tokenizer, whole[:i], answer_next=True)
            after = chat_text(tokenizer, whole[: i + 1], answer_next=False)
            if after.startswith(chat_text(tokenizer, whole[:i], answer_next=False)) and not after.startswith(before):
                raise DataError(_not_behind(before, after))
            if not (before.startswith(done) and after.startswith(before)):
                advice = ": use turns='last'" if turns == "all" else ", so an answer does not follow its prompt"
                raise DataError(f"the chat template changes earlier turns when later ones follow{advice}")
            found.append(Segment(template_ids(tokenizer, before[len(done) :]), is_target=False))
            _check_prompt(tokenizer, found, whole[:i])
            answer, rest = _until_end(tokenizer, template_ids(tokenizer, after[len(before) :]))
            found.append(Segment(answer if i < last else _closed(tokenizer, answer), is_target=True))
            found += [Segment(rest, is_target=False)] if i < last else []
            done = after
    return found


def _check_texts(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """Raises DataError for a text with a special token's spelling that the tokenizer cannot write as text."""
    for number, message in enumerate(messages, 1):
        try:
            special_tokens(tokenizer).cut(message.content, is_answer=message.role == "assistant")
        except PromptError as error:
            raise DataError(str(error).replace("a text", f"turn {number}", 1)) from None


def _not_behind(before: str, after: str) -> str:
    """Why an answer as the template writes it does not begin where generation would begin it."""
    same = next((i for i, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(after))
    word = before[max(before.rfind(" ", 0, same), before.rfind("\n", 0, same)) + 1 :]
    return (
        f"the chat template's generation prompt ends in {word.strip()!r}, and the template writes the answer "
        "without it: begin the answer with that text if the template keeps it, or change the template"
    )


def _check_prompt(tokenizer: Tokenizer, segments: Sequence[Segment], asked: Conversation) -> None:
    """Raises DataError where what stands before an answer is not what a model is given to answer it."""
    if [token for segment in segments for token in segment.ids] != prompt_ids(tokenizer, asked):
        raise DataError("the tokenizer joins the end of a turn with the next one: use turns='last'")


def _until_end(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], list[int]]:
    end = next((i + 1 for i, token in enumerate(ids) if token == tokenizer.eos_token_id), len(ids))
    return ids[:end], ids[end:]


def _closed(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no end token, so no answer could ever end")
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, int(tokenizer.eos_token_id)]


def with_calls_written(table: Table, tokenizer: Tokenizer) -> Table:
    """The rows whose answers call tools with the calls in their answers, as the model is to write them."""
    written = (_written(tokenizer, e) if "tool_calls" in dict(e.fields) else e for e in table.examples)
    return replace(table, examples=tuple(written))


def _written(tokenizer: Tokenizer, example: Example) -> Example:
    text = tokenizer.decode(_conversation(tokenizer, example, "last")[-1].ids, skip_special_tokens=True)
    return replace(example, refs=(str(text),))


def _refusal(table: Table, rows: Iterable[int], max_length: int | None) -> str:
    numbers = list(rows)
    shown = ", ".join(map(str, numbers[: 4 * SHOWN])) + (", ..." if len(numbers) > 4 * SHOWN else "")
    return (
        f"{table.source}: the answers of {len(numbers)} rows are longer than max_length={max_length} tokens (rows "
        f"{shown}): raise max_length, shorten them, or leave them out with too_long='skip'"
    )
