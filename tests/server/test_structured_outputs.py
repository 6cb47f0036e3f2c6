"""StructuredOutputs: one form, as the engine takes it."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.errors import SamplingError
from polyvera.server.requests import CompletionBody
from polyvera.server.structured_outputs import StructuredOutputs

TEXT = {"model": "m", "prompt": "x"}


@pytest.mark.parametrize(
    ("given", "schema", "grammar"),
    [
        ({"choice": ["yes", "no"]}, None, 'start: "yes" | "no"'),
        ({"regex": "[ab]+"}, None, "start: /([ab]+)/"),
        ({"grammar": 'start: "a"'}, None, 'start: "a"'),
        ({"json": {"type": "null"}}, '{"type": "null"}', None),
    ],
)
def test_each_form(given: dict[str, Any], schema: str | None, grammar: str | None) -> None:
    body = CompletionBody.model_validate({**TEXT, "structured_outputs": given})
    [params] = body.all_params(4, None)
    assert params.schema == schema
    assert grammar is None or (params.grammar or "").replace("(", "").replace(")", "").strip() == grammar.replace(
        "(", ""
    ).replace(")", "")


@pytest.mark.parametrize("given", [{}, {"choice": []}, {"choice": ["a"], "regex": "b"}, {"choice": [""]}, {"x": 1}])
def test_one_of_them_is_given(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StructuredOutputs.model_validate(given)


def test_two_forms_do_not_go_together() -> None:
    body = CompletionBody.model_validate(
        {**TEXT, "structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}}
    )
    with pytest.raises(SamplingError, match="give one of the two"):
        body.all_params(4, None)
