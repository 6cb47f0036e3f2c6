"""ToolParser: the calls in an answer as its text comes, and the text around them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from polyvera.model.tool_formats import ToolFormat
from polyvera.strict_json import JsonError, raw_value

CLOSING = "</tool_call>"
ARGUMENTS = ("arguments", "parameters")
NUM_ID_CHARS = 24
MARKS = "[]},; \n\r\t"  # between two calls, and behind the last
SPACED = re.compile(r" ?([{:,]) ?")
# A call as far as its arguments, behind those before it, in an answer that was cut off.
BEGUN = re.compile(rf'[{re.escape(MARKS)}]*\{{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"(?:{"|".join(ARGUMENTS)})"\s*:\s*')


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call. arguments: JSON, whole unless the answer was cut off."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of an answer adds: text, and calls after it."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass
class ToolParser:
    """Of one answer. names: the functions that there are; a call of another one is text."""

    format: ToolFormat
    names: Collection[str]
    num_calls: int = 0
    _held: str = ""
    _is_begun: bool = field(default=False)  # text went out: what follows is no bare call

    def add(self, text: str) -> Parsed:
        """What is certain with the next text."""
        self._held += text
        found = self._marked()
        if self._is_bare:
            return found
        out, self._held = self._split()
        if self.num_calls and not out.strip():
            out = ""  # what stands between two calls
        self._is_begun = self._is_begun or bool(out.strip())
        return Parsed(found.text + out, found.calls)

    def finish(self, *, is_cut: bool = False) -> Parsed:
        """What was held back, at the end of the answer. is_cut: whether it might have gone on."""
        found = self._marked()
        held, self._held = self._held, ""
        body = held.partition(self.format.marker)[2] if self.format.marker and self.format.marker in held else held
        before = held[: len(held) - len(body)].removesuffix(self.format.marker)
        calls = self._calls(body) or (self._begun(body) if is_cut else ())
        return Parsed(found.text + (before if calls else held), (*found.calls, *calls))

    @property
    def _is_bare(self) -> bool:
        """Whether the whole answer may be calls, which is known at its end."""
        start = self._held.lstrip()[:1]
        return not self._is_begun and not self.num_calls and (not start or start in "[{")

    def _marked(self) -> Parsed:
        """Calls between a marker and its end, and the text before them."""
        marker, text = self.format.marker, ""
        calls: tuple[ToolCall, ...] = ()
        while marker and marker in self._held and CLOSING in self._held.partition(marker)[2]:
            before, _, rest = self._held.partition(marker)
            body, _, self._held = rest.partition(CLOSING)
            found = self._calls(body)
            text += before if found else before + marker + body + CLOSING
            calls += found
        text = text if text.strip() or not calls else ""
        self._is_begun = self._is_begun or bool(text)
        return Parsed(text, calls)

    def _split(self) -> tuple[str, str]:
        """(text, what may become calls)"""
        marker = self.format.marker
        if not marker:
            return self._held, ""
        at = self._held.find(marker)
        sizes = range(min(len(marker) - 1, len(self._held)), 0, -1)
        if at < 0:
            at = next((len(self._held) - n for n in sizes if marker.startswith(self._held[-n:])), len(self._held))
        return self._held[:at], self._held[at:]

    def _calls(self, body: str) -> tuple[ToolCall, ...]:
        """All that a text has, if it has nothing else and every function is known."""
        body = body.strip().removeprefix(self.format.token or "\0").strip()
        values = list(_values(body))
        every = [one for value in values for one in (value if isinstance(value, list) else [value])]
        if not every or not all(self._is_call(one) for one in every):
            return ()
        return tuple(self._call(one["name"], next(one[key] for key in ARGUMENTS if key in one)) for one in every)

    def _begun(self, body: str) -> tuple[ToolCall, ...]:
        """The calls of an answer that was cut off and has nothing else; the last one's arguments may not be whole."""
        calls: list[tuple[str, Any]] = []
        begin, end = BEGUN.match(body), 0
        while begin is not None and begin[1] in self.names:
            try:
                arguments, end = raw_value(body, begin.end())
            except JsonError:
                arguments, end = body[begin.end() :], len(body)
            calls.append((begin[1], arguments))
            begin = BEGUN.match(body, end)
        return tuple(self._call(*call) for call in calls) if self._is_beginning(body[end:]) else ()

    def _is_beginning(self, rest: str) -> bool:
        """Whether what follows a call is nothing but marks, or could have become another call."""
        rest = rest.lstrip(MARKS)
        if self.format.closing.lstrip(MARKS).startswith(rest):
            return True
        given = SPACED.sub(r"\1", " ".join(rest.split()))
        begun = (f'{{"name":"{name}","{key}":' for name in self.names for key in ARGUMENTS)
        return any(one.startswith(given) for one in begun)

    def _is_call(self, value: Any) -> bool:
        name = value.get("name") if isinstance(value, dict) else None
        return isinstance(name, str) and name in self.names and any(key in value for key in ARGUMENTS)

    def _call(self, name: str, arguments: Any) -> ToolCall:
        self.num_calls += 1
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        number = f"call_{uuid4().hex[:NUM_ID_CHARS]}"
        return ToolCall(self.format.call_id(number), name, text)


def _values(text: str) -> Iterator[Any]:
    """The JSON values that a text has side by side; None where it has anything else."""
    at = 0
    while at < len(text):
        try:
            value, at = raw_value(text, at)
        except JsonError:
            yield None
            return
        yield value
        while at < len(text) and text[at] in "; \n\r\t,":
            at += 1
