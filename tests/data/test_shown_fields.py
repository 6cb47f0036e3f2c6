"""What a conversation says beside its texts reaches the chat template, as serving would write it, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TEMPLATE, make_tokenizer

from polyvera.data.encoding import IGNORED, encode, with_calls_written
from polyvera.data.tables import Table, read
from polyvera.errors import DataError
from polyvera.model.prompt import prompt_ids

CALL = {"type": "function", "function": {"name": "w9", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "w9"}}]
CALLING = (
    "{% if tools %}system : w30 {% endif %}{% for m in messages %} {{ m['role'] }} : {% if m.name %} w33 {% endif %}"
    "{% if m.tool_calls %} w31 {{ m.tool_calls[0].function.name }} {% endif %}{{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)


def table(folder: Path, *turns: dict[str, Any], **row: Any) -> Table:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "w1"}, *turns], **row}) + "\n")
    return read(path)


def answer(content: str | None = "w2", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def texts(rows: Table, template: str, **how: Any) -> tuple[str, str]:
    """All that is read, and what of it is learnt."""
    tokenizer = make_tokenizer(template=template)
    row = encode(rows, tokenizer, None, **how).rows[0]
    learnt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(learnt)


def test_tools_and_calls_are_read_and_calls_are_learnt(tmp_path: Path) -> None:
    turns = (answer(tool_calls=[CALL]), {"role": "tool", "content": "w5", "name": "w9"}, answer("w6"))
    whole, learnt = texts(table(tmp_path, *turns, tools=TOOLS), CALLING)
    assert whole.startswith("system : w30 user : w1") and learnt == "w31 w9 w2 </s> w6 </s>"
    assert texts(table(tmp_path, answer(None, tool_calls=[CALL])), CALLING)[1] == "w31 w9 </s>"


def test_a_template_that_knows_no_tools_gets_them_as_serving_writes_them(tmp_path: Path) -> None:
    rows = table(tmp_path, answer(None, tool_calls=[CALL]), tools=TOOLS)
    tokenizer = make_tokenizer()
    row = encode(rows, tokenizer, None).rows[0]
    asked = prompt_ids(tokenizer, rows.examples[0].asked)
    assert row["input_ids"][: len(asked)] == asked and len(asked) > 100


def test_a_call_is_a_right_answer_as_the_model_writes_it(tmp_path: Path) -> None:
    rows = table(tmp_path, answer(None, tool_calls=[CALL]))
    [right] = with_calls_written(rows, make_tokenizer(template=CALLING)).examples[0].right
    assert right == "w31 w9"


def test_a_turn_of_weight_0_is_no_target(tmp_path: Path) -> None:
    turns = (answer("w3", weight=0), {"role": "user", "content": "w4"}, answer("w5"))
    assert texts(table(tmp_path, *turns), TEMPLATE)[1] == "w5 </s>"


@pytest.mark.parametrize(
    ("turn", "row", "what"),
    [
        ({"name": "w7"}, {}, "turn 2: 'name'"),
        ({"reasoning_content": "w7"}, {}, "turn 2: 'reasoning_content'"),
        ({"refusal": "w7"}, {}, "turn 2: 'refusal'"),
    ],
)
def test_what_the_template_does_not_show_is_refused_by_name(
    tmp_path: Path, turn: dict[str, Any], row: dict[str, Any], what: str
) -> None:
    with pytest.raises(DataError, match=f"row 1: {what} is not shown by the chat template"):
        texts(table(tmp_path, answer(**turn), **row), TEMPLATE)
    if "name" in turn:
        assert "w33" in texts(table(tmp_path, answer(**turn), **row), CALLING)[1]


def test_tools_that_the_template_writes_in_some_turns_only_are_refused(tmp_path: Path) -> None:
    hidden = CALLING.replace("{% if tools %}", "{% if tools and false %}")
    with pytest.raises(DataError, match="row 1: the column 'tools' is not shown by the chat template"):
        texts(table(tmp_path, answer(), tools=TOOLS), hidden)
