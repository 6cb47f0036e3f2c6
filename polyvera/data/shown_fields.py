"""check_shown: whether a chat template shows all that a conversation says beside its texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polyvera.errors import DataError, PromptError
from polyvera.model.message import Conversation, Message
from polyvera.model.prompt import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def check_shown(tokenizer: Tokenizer, whole: Conversation) -> None:
    """Raises DataError for tools, or a field of a turn, without which the chat template writes the same text."""
    for what, told, bare in _each(whole):
        if _text(tokenizer, told) == _text(tokenizer, bare):
            raise DataError(
                f"{what} is not shown by the chat template, so it is not trained on: remove it, or write what it says "
                "into content"
            )


def _each(whole: Conversation) -> Iterator[tuple[str, Conversation, Conversation]]:
    """(what may not be shown, the conversation with it, the conversation without it)"""
    if whole.tools:
        yield "the column 'tools'", whole[:1], replace(whole[:1], tools=())
    for i, message in enumerate(whole.messages):
        for name, value in message.fields:
            if not _is_known(name, value, whole.messages[:i]):
                before = whole.messages[:i]
                bare = replace(whole, messages=(*before, message.without(name)))
                yield f"turn {i + 1}: {name!r}", whole[: i + 1], bare


def _is_known(name: str, value: Any, before: tuple[Message, ...]) -> bool:
    """Whether it says no more than an earlier call does: which one is answered."""
    calls = [call["function"]["name"] for m in before for call in dict(m.fields).get("tool_calls", ())]
    return name == "tool_call_id" or (name == "name" and value in calls)


def _text(tokenizer: Tokenizer, whole: Conversation) -> str | None:
    """None where the template refuses it."""
    try:
        return chat_text(tokenizer, whole, answer_next=False)
    except PromptError:
        return None
