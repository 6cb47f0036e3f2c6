"""ToolParser: calls are found however their text comes in pieces, and all else is text."""

import json

import pytest

from polyvera import strict_json
from polyvera.model.tool_formats import FORMATS, HERMES, LLAMA, MISTRAL, SMOLLM, ToolFormat
from polyvera.server.tool_parser import ToolParser

CALL = {"name": "f", "arguments": {"x": 'a "}]</b>', "n": [1, {"k": None}]}}
OTHER = {"name": "g", "arguments": {}}


def parse(format_: ToolFormat, text: str, size: int) -> tuple[str, list[tuple[str, object]]]:
    parser, said, calls = ToolParser(format_, {"f", "g"}), "", []
    for at in range(0, len(text), size):
        part = parser.add(text[at : at + size])
        said, calls = said + part.text, [*calls, *part.calls]
    last = parser.finish()
    calls += last.calls
    assert parser.num_calls == len(calls) and len({call.id for call in calls}) == len(calls)
    return said + last.text, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("calls", [[CALL], [CALL, OTHER], [OTHER, CALL, OTHER]])
def test_calls_are_read_as_their_family_writes_them(format_: ToolFormat, size: int, calls: list[dict]) -> None:
    text = format_.text_of(calls)
    assert parse(format_, text, size) == ("", [(call["name"], call["arguments"]) for call in calls])


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("format_", "text", "said"),
    [
        (HERMES, 'So:\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', "So:\n"),
        (HERMES, '<tool_call>\n{"arguments": {}, "name": "f"}', ""),  # its end is a token that no text shows
        (HERMES, '{"name": "f", "arguments": {}}', ""),  # and its beginning
        (SMOLLM, '<tool_call>{"name": "f", "arguments": {}}</tool_call>', ""),
        (LLAMA, '\n{"name": "f", "parameters": {}}', ""),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}}]', ""),
        (MISTRAL, '[{"name": "f", "arguments": "{}"}]', ""),
    ],
)
def test_what_stands_around_a_call_is_text(format_: ToolFormat, text: str, said: str, size: int) -> None:
    assert parse(format_, text, size) == (said, [("f", {})])


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        "",
        "[1, 2]",
        '{"name": "unknown", "arguments": {}}',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        "<tool_call>what?</tool_call> and more",
        "a <tool_",
        '{"name": "f"}',
        '{"name": ["f"], "arguments": {}}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f", "arguments": {"x": -Infinity}}',
        '{"name": "f", "arguments": {"x": "\\ud83d"}}',
        '{"name": "f", "arguments": ' + "9" * 5000 + "}",
        '{"name": "f", "arguments": {}} is how it is called',
        "{" * 3000,
    ],
)
def test_all_else_is_text_whole(format_: ToolFormat, text: str, size: int) -> None:
    assert parse(format_, text, size) == (text, [])


def test_text_is_not_held_back() -> None:
    parser = ToolParser(HERMES, {"f"})
    assert parser.add("Hello").text == "Hello" and parser.add(" <").text == " " and parser.add("b>").text == "<b>"


def test_a_call_is_told_once_it_is_whole() -> None:
    parser = ToolParser(HERMES, {"f"})
    assert parser.add('<tool_call>{"name": "f", "arguments": {}}</tool_').calls == ()
    [call] = parser.add("call>").calls
    assert call.name == "f" and call.id.startswith("call_")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_call_that_was_cut_off_is_told_as_far_as_it_goes(format_: ToolFormat) -> None:
    text = format_.text_of([CALL]).removesuffix(format_.closing)[:-4]
    parser = ToolParser(format_, {"f"})
    found = (parser.add(text), parser.finish(is_cut=True))
    [call] = (*found[0].calls, *found[1].calls)
    assert call.name == "f" and json.dumps(CALL["arguments"]).startswith(call.arguments) and len(call.arguments) > 10


@pytest.mark.parametrize("format_", FORMATS)
def test_what_was_cut_off_behind_a_call_is_none_of_its_arguments(format_: ToolFormat) -> None:
    whole = format_.text_of([OTHER, CALL])
    for num in range(len(whole) - len(format_.closing), len(whole)):
        parser = ToolParser(format_, {"f", "g"})
        calls = (*parser.add(whole[:num]).calls, *parser.finish(is_cut=True).calls)
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("g", {}), ("f", CALL["arguments"])]
    parser = ToolParser(format_, {"f", "g"})
    calls = (*parser.add(whole[: whole.index("b>")]).calls, *parser.finish(is_cut=True).calls)
    assert [(call.name, call.arguments) for call in calls] == [("g", "{}"), ("f", '{"x": "a \\"}]</')]


CALLED = '{"name": "f", "arguments": {}}'


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize(
    "rest",
    [" and then I", ', {"name": "unknown", "arg', ', {"name": "fu', ', {"nome', ", {1", "}]</b>", '; {"name": "f g'],
)
def test_what_is_cut_off_behind_a_call_and_is_none_is_text_whole(format_: ToolFormat, rest: str, size: int) -> None:
    text, parser, said = format_.opening + CALLED + rest, ToolParser(format_, {"f", "find"}), ""
    for at in range(0, len(text), size):
        said += parser.add(text[at : at + size]).text
    last = parser.finish(is_cut=True)
    assert said + last.text == text and last.calls == () and parser.num_calls == 0


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("begun", ["", '{ "name"\n : "find" , "parameters":', '{"name": "f", "arguments":'])
def test_another_call_that_was_cut_off_before_its_arguments_is_left_out(format_: ToolFormat, begun: str) -> None:
    for num in range(len(begun)):
        parser = ToolParser(format_, {"f", "find"})
        parser.add(f"{CALLED}; {begun[:num]}")
        last = parser.finish(is_cut=True)
        assert (last.text, [(call.name, call.arguments) for call in last.calls]) == ("", [("f", "{}")])


def test_each_value_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Counted:
        def search(self, text: str, begin: int, end: int) -> None:
            looked.append(end - begin)

    monkeypatch.setattr(strict_json, "HALF", Counted())
    text = LLAMA.text_of([CALL] * 200)
    for is_cut, whole in ((False, text), (True, text[:-1])):
        looked.clear()
        parser = ToolParser(LLAMA, {"f"})
        parser.add(whole)
        assert len(parser.finish(is_cut=is_cut).calls) == 200 <= len(looked) and sum(looked) <= (1 + is_cut) * len(
            whole
        )


def test_ids_are_as_the_family_takes_them() -> None:
    parser = ToolParser(MISTRAL, {"f"})
    parser.add(MISTRAL.text_of([CALL]))
    [call] = parser.finish().calls
    assert len(call.id) == 9 and call.id.isalnum()
