"""Message: one turn of a conversation, and the tools that it may call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Tools = Sequence[Mapping[str, Any]]
# Each role, and what chat templates call it.
ROLES: Mapping[str, str] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. fields: more of it that chat templates read, such as tool_calls, by their names."""

    role: str
    content: str
    fields: tuple[tuple[str, Any], ...] = ()

    def without(self, name: str) -> Message:
        """The turn without one of its fields."""
        return Message(self.role, self.content, tuple((key, value) for key, value in self.fields if key != name))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and what a model is told beside them. tools: functions that it may call, as OpenAI describes them."""

    messages: tuple[Message, ...]
    tools: Tools = ()

    def __getitem__(self, part: slice) -> Conversation:
        """Some of its turns."""
        return Conversation(self.messages[part], self.tools)
