"""Bodies of requests: what is known is taken, what is not is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.model.message import Message
from polyvera.server.requests import ChatBody, ChatMessage, CompletionBody, ResponseFormat, TokenizeBody, several

TEXT = {"model": "m", "prompt": "x"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("name", ["tools", "suffix", "made_up"])
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        CompletionBody.model_validate({**TEXT, name: 1})


def test_null_is_left_out_and_what_changes_nothing_is_ignored() -> None:
    body = CompletionBody.model_validate({**TEXT, "tools": None, "user": "u", "metadata": {}, "temperature": None})
    assert body.temperature == 1.0
    assert ChatBody.model_validate({**CHAT, "top_logprobs": 0}).top_logprobs == 0, "none are asked for"


def test_each_choice_has_a_seed_of_its_own() -> None:
    body = CompletionBody.model_validate({**TEXT, "n": 3, "seed": 7, "top_k": -1, "stop": "end"})
    params = body.all_params(5, 2)
    assert [one.seed for one in params] == [7, 8, 9]
    assert {(one.max_tokens, one.logprobs, one.top_k, one.stop) for one in params} == {(5, 2, 0, ("end",))}
    assert [one.seed for one in CompletionBody.model_validate({**TEXT, "n": 2}).all_params(None, None)] == [None, None]


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "{}"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}, '{"type": "object"}'),
    ],
)
def test_a_format_is_a_schema(given: dict[str, Any], schema: str | None) -> None:
    assert ResponseFormat.model_validate(given).schema_text == schema


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        (ResponseFormat, {"type": "json_schema"}, "json_schema"),
        (ResponseFormat, {"type": "text", "json_schema": {"schema": {}}}, "json_schema"),
        (CompletionBody, {**TEXT, "max_tokens": 0}, "at least 1 without echo=true"),
        (CompletionBody, {**TEXT, "best_of": 2}, "best_of"),
        (ChatBody, {**CHAT, "top_logprobs": 1}, "needs logprobs=true"),
        (ChatBody, {**CHAT, "messages": []}, "messages"),
        (TokenizeBody, {}, "one of the two"),
        (TokenizeBody, {"prompt": "x", **CHAT}, "one of the two"),
    ],
)
def test_what_does_not_go_together_is_refused(kind: Any, given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        kind.model_validate(given)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]]), ([], [])],
)
def test_prompts_are_several(given: Any, prompts: Any) -> None:
    assert several(given) == prompts
    if given:
        assert CompletionBody.model_validate({"model": "m", "prompt": given}).prompts == prompts


def test_a_message_is_plain_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatMessage.model_validate({"role": "developer", "content": parts}).plain == Message("system", "ab")
