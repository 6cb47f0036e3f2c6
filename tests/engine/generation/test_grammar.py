"""Answers that follow a JSON schema, whatever the model would rather say."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_serve import LONGEST_WAIT, Solo, all_of, assert_nothing_is_left, make_prompt
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.grammar import Grammars
from polyvera.engine.generation.request import LENGTH, MAX_SCHEMA_CHARS, STOP, SamplingParams
from polyvera.errors import SamplingError, ServeError

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "€uro"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Generator]:
    with Generator(llama, tokenizer) as engine:
        yield engine


def choices(schema: object, seed: int | None = None, **given: Any) -> SamplingParams:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return SamplingParams(max_tokens=90, temperature=0.0 if seed is None else 1.0, seed=seed, schema=text, **given)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_answers_are_of_the_schema_while_others_answer_freely(engine: Generator, solo: Solo, seed: int | None) -> None:
    prompts = [make_prompt(i, 5, 20) for i in range(4)]
    bound = [engine.answer(prompt, None, choices(PERSON, seed)) for prompt in prompts]
    free = [engine.answer(prompt, None, SamplingParams(max_tokens=12)) for prompt in prompts]
    for answer in all_of(bound):
        found = json.loads(answer.text)
        assert answer.finish_reason == STOP and list(found) == ["name", "age", "kind", "tags"]
        assert len(found["name"]) <= 6 and 0 <= found["age"] <= 120 and found["kind"] in ("cat", "dog", "€uro")
        assert 1 <= len(found["tags"]) <= 3 and {type(tag) for tag in found["tags"]} == {bool}
    for answer, prompt in zip(all_of(free), prompts, strict=True):
        assert answer.ids == solo.answers(None, prompt, 12)
    assert_nothing_is_left(engine)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [({"type": "boolean"}, bool), ({"type": "null"}, type(None)), ({"enum": [3, 5]}, int), ({"const": "€"}, str)],
)
def test_an_answer_ends_where_its_grammar_does(engine: Generator, schema: object, kind: type) -> None:
    for given in ({}, {"ignore_eos": True}, {"min_tokens": 30}):
        answer = engine.answer(make_prompt(1), None, choices(schema, **given)).result(LONGEST_WAIT)
        assert type(json.loads(answer.text)) is kind and answer.finish_reason == STOP


def test_any_object_may_be_asked_for(engine: Generator) -> None:
    answers = all_of(engine.answer(make_prompt(seed), None, choices("{}", seed)) for seed in range(12))
    ended = [answer for answer in answers if answer.finish_reason == STOP]
    assert ended and all(isinstance(json.loads(answer.text), dict) for answer in ended)
    assert all(answer.text.startswith("{") for answer in answers)


def test_an_answer_that_is_cut_off_is_the_beginning_of_one(engine: Generator) -> None:
    asked = SamplingParams(max_tokens=5, schema=json.dumps(PERSON))
    answer = engine.answer(make_prompt(0), None, asked).result(LONGEST_WAIT)
    assert answer.finish_reason == LENGTH and answer.text == '{"nam'


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "5",
        "[" * 5000,
        '{"type": "nothing"}',
        '{"type": "number", "minimum": 1, "maximum": 0}',
        '{"type": "string", "pattern": "(?=a)b"}',
        '{"$ref": "#"}',
        '{"$ref": "http://localhost/schema"}',
        '{"enum": [' + " " * MAX_SCHEMA_CHARS + "1]}",
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(engine: Generator, schema: str) -> None:
    with pytest.raises(SamplingError, match="schema"):
        engine.answer(make_prompt(0), None, choices(schema))
    assert_nothing_is_left(engine)


def test_a_token_that_is_not_allowed_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    grammar = Grammars(tokenizer, len(tokenizer), frozenset({1})).of('{"type": "boolean"}')
    logits = torch.zeros(len(tokenizer))
    grammar.restrict(logits)
    allowed = {tokenizer.decode([int(i)]) for i in logits.isfinite().nonzero()}
    assert allowed == {"t", "tr", "f"}
    with pytest.raises(ServeError, match="cannot continue as its JSON schema says"):
        grammar.accept(tokenizer.encode("x", add_special_tokens=False)[0])
