"""ToolFormat: which family a chat template is of, and what the template is given."""

import json
from typing import Any

import pytest
from tiny_serve import make_tokenizer

from polyvera.model.message import Message
from polyvera.model.prompt import Template, templated
from polyvera.model.tool_formats import HERMES, LLAMA, MISTRAL, SMOLLM, ToolFormat, format_of, told

TOOLS = [{"type": "function", "function": {"name": "f", "description": "what", "parameters": {"type": "object"}}}]
CALLED = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": {"x": 1}}}
CHAT = (
    Message("system", "Be kind."),
    Message("user", "x?"),
    Message("assistant", "", (("tool_calls", [CALLED]),)),
    Message("tool", "42", (("tool_call_id", "call_1"),)),
)
QWEN = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>{% endfor %}"""
MISTRAL_TEMPLATE = """{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise_exception("ids have 9 letters") }}{% endif %}{{ c.function | tojson }}{% endfor %}]
{%- elif m.role == "tool" %}[TOOL_RESULTS] {{ m.tool_call_id }} {{ m.content }}{% else %}{{ m.content }}{% endif %}
{% endfor %}{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}"""
LLAMA_TEMPLATE = """<|start_header_id|>{% if tools %}{"name": , "parameters": }{{ tools | tojson }}{% endif %}
{% for m in messages %}{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{
m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}"""
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TEMPLATES: list[tuple[str, ToolFormat]] = [
    (QWEN, HERMES),
    (MISTRAL_TEMPLATE, MISTRAL),
    (LLAMA_TEMPLATE, LLAMA),
    (PLAIN, SMOLLM),
]


def rendered(template: str, messages: tuple[Message, ...] = CHAT, tools: Any = TOOLS) -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    given, described = told(format_of(template), messages, tools, 4096)
    return templated(tokenizer, given, Template(tools=described))


@pytest.mark.parametrize(("template", "format_"), TEMPLATES)
def test_a_family_is_known_by_its_template_and_is_told_of_tools_calls_and_results(
    template: str, format_: ToolFormat
) -> None:
    assert format_of(template) is format_
    text = rendered(template)
    assert '"description": "what"' in text and '"x": 1' in text and "42" in text and "Be kind." in text


def test_no_family_is_one_that_is_told_in_words() -> None:
    assert format_of(None) is SMOLLM and format_of({"default": PLAIN}) is SMOLLM
    text = rendered(PLAIN)
    assert text.startswith("system: Be kind.\n\nYou are an expert in composing functions.")
    assert '<tool_call>[{"name": "f", "arguments": {"x": 1}}]</tool_call>' in text
    assert "user: <tool_response>\n42\n</tool_response>" in text
    assert rendered(PLAIN, CHAT[1:2]).startswith("system: You are an expert")
    assert SMOLLM.prompt(TOOLS, 200) == f"Tools: {json.dumps(TOOLS)}" == SMOLLM.prompt(TOOLS, 2)
    assert rendered(PLAIN, CHAT[:2], []) == "system: Be kind.\nuser: x?\n"


def test_ids_are_the_same_in_a_call_and_its_result() -> None:
    text = rendered(MISTRAL_TEMPLATE)
    assert MISTRAL.call_id("call_1") in text and len(MISTRAL.call_id("call_1")) == 9
    assert HERMES.call_id("call_1") == "call_1"
