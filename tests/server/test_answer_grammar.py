"""Grammars: what follows them is what was asked for, by the library that follows them."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tiny_serve import make_tokenizer

from polyvera.engine.generation.grammar_worker import LARK, grammar_of
from polyvera.model.tool_formats import FORMATS, HERMES, ToolFormat
from polyvera.server.answer_grammar import call_grammar, choice_grammar, regex_grammar

REFERRING = {
    "type": "object",
    "properties": {"v": {"$ref": "#/$defs/V"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "$defs": {"V": {"enum": ["a", "b"]}},
}
FUNCTIONS: list[dict[str, Any]] = [{"name": "f", "parameters": REFERRING}, {"name": "g", "parameters": {}}]


def accepts(grammar: str, text: str, *before: int) -> bool:
    tokenizer = make_tokenizer()
    known = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=len(tokenizer), eos_token=[1])
    matcher = LLMatcher(known, grammar_of(LARK + grammar))
    assert not matcher.is_error(), matcher.get_error()
    ids = [*before, *tokenizer(text).input_ids]
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("choices", [["yes", "no"], ['a "quoted" one', "é\n", "\\d", "x/y"]])
def test_one_of_some_choices(choices: list[str]) -> None:
    grammar = choice_grammar(choices)
    assert all(accepts(grammar, choice) for choice in choices)
    assert not accepts(grammar, choices[0] + choices[1]) and not accepts(grammar, "7")


def test_an_expression_and_a_grammar() -> None:
    assert accepts(regex_grammar(r"\d{2}/[ab]+"), "12/ab") and not accepts(regex_grammar(r"\d{2}/[ab]+"), "1/ab")
    for text in ('start: "yes" | "no"', 'root ::= "yes" | "no"'):
        assert accepts(text, "no") and not accepts(text, "so")


@pytest.mark.parametrize("format_", FORMATS)
def test_calls_in_the_family_s_format(format_: ToolFormat) -> None:
    first = {"name": "f", "arguments": {"v": "a", "next": {"v": "b", "next": None}}}
    other = {"name": "g", "arguments": {}}
    one, several = call_grammar(format_, FUNCTIONS, 1, None), call_grammar(format_, FUNCTIONS, 4, None)
    for calls in ([first], [other]):
        assert accepts(one, format_.text_of(calls)) and accepts(several, format_.text_of(calls))
    assert accepts(several, format_.text_of([first, other, first])) and not accepts(
        one, format_.text_of([first, other])
    )
    for wrong in ({"name": "h", "arguments": {}}, {"name": "f", "arguments": {"v": "c", "next": None}}):
        assert not accepts(one, format_.text_of([wrong]))


def test_arguments_have_no_key_that_the_schema_does_not_name() -> None:
    grammar = call_grammar(HERMES, FUNCTIONS, 1, None)
    extra = {"name": "f", "arguments": {"v": "a", "next": None, "more": 1}}
    assert not accepts(grammar, HERMES.text_of([extra]))
    assert json.loads(grammar.partition("%json ")[2])["$defs"]["f0"]["additionalProperties"] is False


def test_a_special_token_stands_before_calls() -> None:
    grammar = call_grammar(HERMES, FUNCTIONS, 1, 2)
    text = HERMES.text_of([{"name": "g", "arguments": {}}])
    assert accepts(grammar, text, 2) and not accepts(grammar, text)
