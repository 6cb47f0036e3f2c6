"""What is wrong with a body is told in the API's words."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.server.invalid_body import invalid_body
from polyvera.server.job_requests import FineTuningBody
from polyvera.server.message_body import MessageBody
from polyvera.server.request_body import RequestBody
from polyvera.server.requests import ChatBody, CompletionBody, VectorBody
from polyvera.server.response_body import ResponseBody
from polyvera.server.routes.tinker.bodies import SamplingBody, SessionBody
from polyvera.server.score_bodies import RerankBody

TEXT = {"model": "m", "prompt": "x"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TURN = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
WHOLE: dict[type[RequestBody], dict[str, Any]] = {
    CompletionBody: TEXT,
    ChatBody: CHAT,
    MessageBody: {**CHAT, "max_tokens": 1},
    ResponseBody: {"model": "m", "input": "x"},
    RerankBody: {"model": "m", "query": "x", "documents": ["x"]},
    VectorBody: {"model": "m", "input": "x"},
    FineTuningBody: {"model": "m", "training_file": "file-1"},
    SamplingBody: {},
    SessionBody: {"sdk_version": "0.38.0"},
}
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
        (ChatBody, {"tool_choice": 3}, "tool_choice: must be a string or an object", "tool_choice"),
        (ChatBody, {"tool_choice": "any"}, "tool_choice: must be 'none', 'auto' or 'required'", "tool_choice"),
        (ChatBody, {"tool_choice": {"function": {}}}, "tool_choice.function.name: is required", "tool_choice"),
        (ChatBody, {"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name: must match", "tools"),
        (MessageBody, {"messages": TURN}, "messages[0].content[0]: type image is not read here; text", "messages"),
        (MessageBody, {"system": 3}, "system: must be a string or a list", "system"),
        (MessageBody, {"tool_choice": {"type": "tool"}}, "tool_choice: name goes with type 'tool'", "tool_choice"),
        (ResponseBody, {"input": TURN}, "input[0].content[0]: parts of type image are not read here", "input"),
        (ResponseBody, {"input": []}, "input: must have at least 1 items", "input"),
        (ResponseBody, {"text": {"format": {"type": "json_schema"}}}, "text.format: schema is given with", "text"),
        (RerankBody, {"documents": [{"text": 3}]}, "documents[0].text: must be a string", "documents"),
        (VectorBody, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: must be -1 or", "truncate_prompt_tokens"),
        (FineTuningBody, {"hyperparameters": {"n_epochs": "x"}}, "n_epochs: must be 'auto'", "hyperparameters"),
        (FineTuningBody, {"hyperparameters": {"n_epochs": []}}, "n_epochs: must be 'auto' or a num", "hyperparameters"),
        (SamplingBody, {"stop": [1, "a"]}, "stop[1]: must be an integer", "stop"),
        (SessionBody, {"user_metadata": {"a": []}}, "user_metadata.a: must be a string of at most", "user_metadata"),
        (ChatBody, {"top_logprobs": 1}, "top_logprobs: it needs logprobs=true", "top_logprobs"),
    ],
)
def test_it_is_told_by_the_field_that_was_given(kind: Any, given: dict[str, Any], said: str, param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({**WHOLE[kind], **given})
    message, field = invalid_body(refused.value)
    where, _, what = message.partition(": ")
    assert message.startswith(said) or f"{where.rpartition('.')[2]}: {what}".startswith(said)
    assert field == param and "constrained" not in message and "literal" not in message


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate({"model": "m"})
    assert invalid_body(refused.value) == ("messages: is required", "messages")


def test_a_body_that_is_no_object_is_told() -> None:
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate([])
    assert invalid_body(refused.value) == ("must be an object", None)
