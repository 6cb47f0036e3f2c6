"""The tokens of a request's prompts, refused by length before they are made where no context could hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from polyvera.errors import ContextLengthError, SamplingError
from polyvera.model.message import Message
from polyvera.model.prompt import Template, chat_ids, passage, prompt_ids

# No tokenizer's ordinary token stands for more; a prompt of white space alone might be refused too early.
MAX_CHARS_PER_TOKEN = 128


def check_chars(texts: Iterable[str], max_context: int, param: str) -> None:
    """Raises ContextLengthError for a text that no context of so many tokens could hold."""
    most = max_context * MAX_CHARS_PER_TOKEN
    longest = max(map(len, texts), default=0)
    if longest > most:
        raise ContextLengthError(
            f"a text of {longest:,} characters is longer than this model's context of {max_context:,} tokens "
            f"could be, which is at most {most:,} characters: shorten it",
            param,
        )


def check_tokens(num_tokens: int, num_asked: int, max_context: int, param: str) -> None:
    """Raises ContextLengthError for a prompt that does not fit with its answer."""
    if num_tokens + num_asked > max_context:
        raise ContextLengthError(
            f"This model's maximum context length is {max_context} tokens. However, you requested "
            f"{num_tokens + num_asked} tokens ({num_tokens} in {param}, and {num_asked} for the answer): "
            "shorten one of them",
            param,
        )


def prompt_tokens(
    tokenizer: Any, prompts: Sequence[str | list[int]], max_context: int, num_asked: int, param: str
) -> list[list[int]]:
    """Of each prompt. Raises ContextLengthError, SamplingError where there is none."""
    if not prompts:
        raise SamplingError(f"{param}: the list is empty, there is nothing to answer", param)
    check_chars((p for p in prompts if isinstance(p, str)), max_context, param)
    longest = max((len(p) for p in prompts if isinstance(p, list)), default=0)
    check_tokens(longest, num_asked, max_context, param)
    rows = []
    for prompt in prompts:
        rows.append(prompt if isinstance(prompt, list) else prompt_ids(tokenizer, prompt))
        check_tokens(len(rows[-1]), num_asked, max_context, param)
    return rows


def text_tokens(
    tokenizer: Any, prompts: Sequence[str | list[int]], max_context: int, cut: int | None = None
) -> list[list[int]]:
    """Of each text that a model reads whole. cut: the tokens that are kept of each, where it was asked for."""
    check_chars((p for p in prompts if isinstance(p, str)), max_context, "input")
    rows = [p[:cut] if isinstance(p, list) else passage(tokenizer, p, None, cut)["input_ids"] for p in prompts]
    check_tokens(max(map(len, rows)), 0, max_context, "input")
    return rows


def passage_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Of a text that a model reads whole, however long."""
    return list(passage(tokenizer, prompt)["input_ids"])


def chat_tokens(
    tokenizer: Any,
    messages: Sequence[Message],
    max_context: int,
    num_asked: int,
    given: Template | None = None,
    param: str = "messages",
) -> list[int]:
    """Of a conversation. Raises ContextLengthError, PromptError."""
    check_messages(messages, max_context, param)
    ids = chat_ids(tokenizer, messages, given=given)
    check_tokens(len(ids), num_asked, max_context, param)
    return ids


def check_messages(messages: Sequence[Message], max_context: int, param: str = "messages") -> None:
    """Raises ContextLengthError for a conversation that no context could hold."""
    if len(messages) > max_context:
        check_tokens(len(messages), 0, max_context, param)
    check_chars(["".join(message.content for message in messages)], max_context, param)
