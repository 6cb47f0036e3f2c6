"""A prompt that no context could hold is refused by its length, before it is tokenized."""

from typing import Any

import pytest
from tiny_serve import make_tokenizer
from tiny_server import TEMPLATE

from polyvera.errors import ContextLengthError, SamplingError
from polyvera.model.message import Message
from polyvera.model.prompt import chat_ids, prompt_ids
from polyvera.server.prompt_tokens import MAX_CHARS_PER_TOKEN, chat_tokens, check_messages, prompt_tokens

CONTEXT = 40


class Untouched:
    """A tokenizer that nothing may ask."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the text was tokenized: {name}")


@pytest.mark.parametrize("prompts", [["a" * (CONTEXT * MAX_CHARS_PER_TOKEN + 1)], [[5] * CONTEXT], ["a", [1] * 99]])
def test_what_cannot_fit_is_not_tokenized(prompts: Any) -> None:
    with pytest.raises(ContextLengthError) as refused:
        prompt_tokens(Untouched(), prompts, CONTEXT, 1, "prompt")
    assert refused.value.param == "prompt"


def test_nor_is_a_conversation() -> None:
    for messages in (
        [Message("user", "a" * 50_000)],
        [Message("user", "")] * (CONTEXT + 1),
        [Message("user", "ab")] * 9999,
    ):
        with pytest.raises(ContextLengthError) as refused:
            chat_tokens(Untouched(), messages, CONTEXT, 1)
        assert refused.value.param == "messages"
    check_messages([Message("user", "a" * CONTEXT)], CONTEXT)


def test_what_fits_is_as_the_model_reads_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert prompt_tokens(tokenizer, ["Hi", [5, 6]], CONTEXT, 1, "prompt") == [prompt_ids(tokenizer, "Hi"), [5, 6]]
    messages = (Message("user", "Hi"),)
    assert chat_tokens(tokenizer, messages, CONTEXT, 1) == chat_ids(tokenizer, messages)
    with pytest.raises(ContextLengthError, match="maximum context length is 40"):
        chat_tokens(tokenizer, messages, CONTEXT, CONTEXT)
    with pytest.raises(SamplingError, match="empty"):
        prompt_tokens(tokenizer, [], CONTEXT, 1, "prompt")
