"""Prompt: texts and chats as tokens. Not for the event loop: a long text takes its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyvera.errors import SamplingError
from polyvera.server.requests import ChatMessage


def text_ids(tokenizer: Any, prompt: str | list[int], *, special: bool = True) -> list[int]:
    """A prompt's tokens."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt, add_special_tokens=special, verbose=False).input_ids)
    return prompt


def chat_ids(tokenizer: Any, messages: Sequence[ChatMessage], *, generation: bool = True) -> list[int]:
    """A chat's tokens, by the model's template. Raises SamplingError where it has none, or refuses the messages."""
    if not tokenizer.chat_template:
        raise SamplingError("this model has no chat template: use /v1/completions")
    plain = [message.plain for message in messages]
    try:
        found = tokenizer.apply_chat_template(plain, add_generation_prompt=generation, tokenize=True, return_dict=False)
    except Exception as error:  # a template is a program of the model's makers
        raise SamplingError(f"the model's chat template does not take these messages: {error}") from error
    return list(found)


def ids_text(tokenizer: Any, ids: Sequence[int], num_tokens: int) -> str:
    """Tokens as text. Raises SamplingError for a number that is none."""
    beyond = next((i for i in ids if i >= num_tokens), None)
    if beyond is not None:
        raise SamplingError(f"tokens: {beyond} is no token; they are from 0 to {num_tokens - 1}")
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))
