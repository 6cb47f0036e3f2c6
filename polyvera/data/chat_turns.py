"""The turns of a conversation as messages, in the form of OpenAI's fine-tuning files: tools, calls, weights, parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from polyvera.data.row_files import Row, check_unicode
from polyvera.data.row_values import is_list, says_something, text_in
from polyvera.errors import DataError
from polyvera.model.message import ROLES, Message, Tools
from polyvera.model.tool_formats import call_of, tool_of

TOOL_KEYS = ("name", "description", "parameters", "strict")
CALL_KEYS = ("name", "arguments")


def message_of(number: int, turn: Any) -> Message:
    """A turn, whose fields but role, content and weight are left to its chat template. Raises DataError.

    number: of the turn, from 1.
    """
    if not isinstance(turn, Mapping):
        raise DataError("a turn must be an object with role and content")
    role = ROLES.get(str(turn.get("role")))
    if role is None:
        raise DataError(f"role={turn.get('role')!r} must be one of: {', '.join(ROLES)}")
    given = {k: v for k, v in turn.items() if k not in ("role", "content", "weight") and says_something(v)}
    if "tool_calls" in given:
        if role != "assistant":
            raise DataError(f"turn {number}: tool_calls are the assistant's, and this turn is the {role}'s")
        given["tool_calls"] = [_call(number, one) for one in _list(number, "tool_calls", given["tool_calls"])]
    _check_json(f"turn {number}", given)
    may_be_empty = role == "tool" or "tool_calls" in given
    return Message(role, _content(turn, may_be_empty=may_be_empty), tuple(given.items()))


def unlearnt(turns: Sequence[Any], messages: Sequence[Message]) -> tuple[int, ...]:
    """The turns of the assistant, counted from 0, whose weight is 0. Raises DataError for other weights."""
    for number, (turn, message) in enumerate(zip(turns, messages, strict=True), 1):
        weight = turn.get("weight")
        if weight not in (None, 0, 1) or (weight == 1 and message.role != "assistant"):
            raise DataError(f"turn {number}: weight={weight!r} must be 0 or 1, of one of the assistant's turns")
    return tuple(i for i, turn in enumerate(turns) if messages[i].role == "assistant" and turn.get("weight") == 0)


def tools_in(row: Row) -> Tools:
    """The functions in the column tools, a list or its JSON. Raises DataError."""
    given: Any = row.get("tools")
    if not says_something(given):
        return ()
    tools = _parsed("tools", given) if isinstance(given, str) else given
    if not is_list(tools):
        raise DataError("tools must be a list of functions")
    _check_json("tools", {"tools": [_without_nulls(one) for one in tools]})
    return tuple(_tool(_without_nulls(one)) for one in tools)


def _tool(given: Any) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) and given.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("each of tools must be {'type': 'function', 'function': {'name': ...}}")
    _check_keys("tools: ", function, TOOL_KEYS)
    parameters = function.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise DataError(f"tools: the parameters of {function['name']} must be a JSON schema of an object")
    return tool_of(function["name"], function.get("description", ""), parameters)


def _call(number: int, given: Any) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"turn {number}: each of tool_calls must have a function with name and arguments")
    _check_keys(f"turn {number}: tool_calls: ", function, CALL_KEYS)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        _parsed(f"turn {number}: the arguments of {function['name']}", arguments)
    elif _has_null(arguments):
        raise DataError(
            f"turn {number}: the arguments of {function['name']} have a null, which may be its file's filling: write "
            "arguments as a text of JSON"
        )
    else:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call_of(function["name"], arguments, str(given.get("id") or ""))


def _content(turn: Row, *, may_be_empty: bool) -> str:
    content = turn.get("content")
    if may_be_empty and (content == "" or (content is None and turn["role"] == "assistant")):
        return ""
    if not is_list(content):
        return text_in(turn, "content")
    for part in content or ():
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise DataError("content has a part that is not of type text; texts are read alone")
    return text_in({"content": "".join(text_in(part, "text") for part in content or ())}, "content")


def _parsed(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} must be valid JSON: {error}") from None


def _list(number: int, what: str, value: Any) -> Any:
    if not is_list(value):
        raise DataError(f"turn {number}: {what} must be a list")
    return value


def _check_keys(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    other = next((key for key, value in given.items() if key not in known and says_something(value)), None)
    if other is not None:
        raise DataError(f"{where}{other!r} of a function is not known, only {', '.join(known)} are: remove it")


def _check_json(where: str, given: Mapping[str, Any]) -> None:
    """Raises DataError for a value that JSON has not, or half of a character in any text."""
    for key, value in given.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {key!r} cannot be shown to a chat template: {error}") from None
        check_unicode(text, f"{where}: {key!r}")


def _without_nulls(value: Any) -> Any:
    """A value of a schema without the nulls with which a table fills up what other rows have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if is_list(value) else value


def _has_null(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if is_list(value) else ()
    return value is None or any(_has_null(one) for one in inner)
