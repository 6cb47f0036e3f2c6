"""What is wrong with a body is told in the API's words."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.server.invalid_body import invalid_body
from polyvera.server.requests import ChatBody, CompletionBody

TEXT = {"model": "m", "prompt": "x"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


@pytest.mark.parametrize(
    ("kind", "given", "said", "param"),
    [
        (CompletionBody, {"n": 65}, "n: must be at most 64", "n"),
        (CompletionBody, {"n": True}, "n: must be an integer", "n"),
        (CompletionBody, {"n": "1"}, "n: must be an integer", "n"),
        (CompletionBody, {"stream": "no"}, "stream: must be true or false", "stream"),
        (CompletionBody, {"top_p": 0}, "top_p: must be more than 0", "top_p"),
        (CompletionBody, {"stop": ["a", ""]}, "stop[1]: must have at least 1 characters", "stop"),
        (CompletionBody, {"prompt": {}}, "prompt: must be a string, a list of strings", "prompt"),
        (CompletionBody, {"prompt": [1, "a"]}, "prompt[1]: must be an integer", "prompt"),
        (CompletionBody, {"made_up": 1}, "made_up: this server does not know it", "made_up"),
        (CompletionBody, {"suffix": "x"}, "suffix: this value is not done here", "suffix"),
        (ChatBody, {"messages": []}, "messages: must have at least 1 items", "messages"),
        (ChatBody, {"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role: must be 'system'", "messages"),
        (ChatBody, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content: must be a string", "messages"),
        (
            ChatBody,
            {"messages": IMAGE},
            "messages[0].content[0]: parts of type image_url are not read here; text is",
            "messages",
        ),
        (ChatBody, {"top_logprobs": 1}, "top_logprobs: it needs logprobs=true", "top_logprobs"),
    ],
)
def test_it_is_told_by_the_field_that_was_given(kind: Any, given: dict[str, Any], said: str, param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({**(TEXT if kind is CompletionBody else CHAT), **given})
    message, field = invalid_body(refused.value)
    assert message.startswith(said) and field == param


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate({"model": "m"})
    assert invalid_body(refused.value) == ("messages: is required", "messages")


def test_a_body_that_is_no_object_is_told() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate([])
    assert invalid_body(refused.value) == ("must be an object", None)
