"""Tokens for training and for generation, made by the same functions, so that both see the same prompt.

A prompt and its completion are tokenized apart and joined; the end token closes each answer and is learnt. No template
is put around a plain prompt; a conversation goes through the tokenizer's chat template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyvera.data.tables import SHOWN, Example, Message, Prompt, Table
from polyvera.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

IGNORED = -100
LABEL = "label"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that are all learnt or all only read."""

    ids: list[int]
    learnt: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token rows of one table. shortened, skipped: row numbers of the source."""

    rows: tuple[dict[str, Any], ...]
    shortened: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()

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
    table: Table, tokenizer: Tokenizer, max_length: int, *, turns: str = "all", too_long: str = "error"
) -> Encoded:
    """The rows as `input_ids` and `labels`, at most max_length tokens each.

    A prompt that doesn't fit is shortened from the left. too_long: 'error' or 'skip' for a row whose answer alone
    doesn't fit. turns: 'all' or 'last', the assistant turns that are learnt. Raises DataError.
    """
    rows, shortened, refused = [], [], []
    for example in table.examples:
        try:
            whole = _encoded(table, example, tokenizer, turns)
        except DataError as error:
            raise DataError(f"{table.source}, row {example.row}: {error}") from error
        row = _fitted(table, whole, example, tokenizer, max_length)
        if row is None:
            refused.append(example.row)
            continue
        rows.append(row)
        if len(row["input_ids"]) < sum(len(segment.ids) for segment in whole):
            shortened.append(example.row)
    if refused and (too_long == "error" or not rows):
        raise DataError(_refusal(table, refused, max_length))
    return Encoded(tuple(rows), tuple(shortened), tuple(refused))


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that the model is given before it answers. Raises DataError without a template for a conversation."""
    if not isinstance(prompt, str):
        return _ids(tokenizer, render(tokenizer, prompt, answer_next=True))
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, answer_next: bool) -> str:
    """A conversation as one text by the chat template. Raises DataError where the tokenizer has none."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, so it can't render messages: use prompt "
            "and completion, or a model that is tuned for chat"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next))
    except Exception as error:  # templates raise what they like
        raise DataError(f"the chat template refuses the conversation: {error}") from error


def _encoded(table: Table, example: Example, tokenizer: Tokenizer, turns: str) -> list[Segment]:
    if table.kind == LABEL:
        return [Segment(_pair(tokenizer, example, None)["input_ids"], learnt=True)]
    if not example.prompt:
        return [Segment(_closed(tokenizer, prompt_ids(tokenizer, example.answer)), learnt=True)]
    if isinstance(example.prompt, str):
        answer = _closed(tokenizer, _ids(tokenizer, example.answer))
        return [Segment(prompt_ids(tokenizer, example.prompt), learnt=False), Segment(answer, learnt=True)]
    return list(_conversation(tokenizer, (*example.prompt, Message("assistant", example.answer)), turns))


def _conversation(tokenizer: Tokenizer, messages: Sequence[Message], turns: str) -> Iterator[Segment]:
    """The text up to each learnt turn and the turn itself, each tokenized apart as generation would have it."""
    last = len(messages) - 1
    done = ""
    for i, message in enumerate(messages):
        if message.role == "assistant" and (i == last or turns == "all") and i > 0:
            before = render(tokenizer, messages[:i], answer_next=True)
            after = render(tokenizer, messages[: i + 1], answer_next=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError("the chat template changes earlier turns when later ones follow: use turns='last'")
            yield Segment(_ids(tokenizer, before[len(done) :]), learnt=False)
            answer, rest = _until_end(tokenizer, _ids(tokenizer, after[len(before) :]))
            yield Segment(answer if i < last else _closed(tokenizer, answer), learnt=True)
            if i < last:
                yield Segment(rest, learnt=False)
            done = after


def _until_end(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], list[int]]:
    end = next((i + 1 for i, token in enumerate(ids) if token == tokenizer.eos_token_id), len(ids))
    return ids[:end], ids[end:]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _closed(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no end token, so no answer could ever end")
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, int(tokenizer.eos_token_id)]


def _pair(tokenizer: Tokenizer, example: Example, max_length: int | None) -> dict[str, Any]:
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    return dict(tokenizer(str(example.prompt), example.pair, verbose=False, **cut))


def _fitted(
    table: Table, segments: list[Segment], example: Example, tokenizer: Tokenizer, max_length: int
) -> dict[str, Any] | None:
    """The row cut to max_length, or None where the answer doesn't fit behind a single token of its prompt."""
    if table.kind == LABEL:
        row = _pair(tokenizer, example, max_length)
        return {k: row[k] for k in ("input_ids", "token_type_ids") if k in row} | {
            "labels": table.labels.index(example.answer)
        }
    ids = [token for segment in segments for token in segment.ids]
    labels = [token if segment.learnt else IGNORED for segment in segments for token in segment.ids]
    if len(segments[-1].ids) + (len(segments) > 1) > max_length:
        return None
    if len(ids) > max_length:
        kept = 1 if ids[0] == tokenizer.bos_token_id and len(segments[-1].ids) + 1 < max_length else 0
        ids, labels = (part[:kept] + part[len(ids) - max_length + kept :] for part in (ids, labels))
    return {"input_ids": ids, "labels": labels}


def _refusal(table: Table, rows: Iterable[int], max_length: int) -> str:
    numbers = list(rows)
    shown = ", ".join(map(str, numbers[: 4 * SHOWN])) + (", ..." if len(numbers) > 4 * SHOWN else "")
    return (
        f"{table.source}: the answers of {len(numbers)} rows are longer than max_length={max_length} tokens (rows "
        f"{shown}): raise max_length, shorten them, or leave them out with too_long='skip'"
    )
