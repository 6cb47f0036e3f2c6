"""Shows the arguments of a docstring as a list, and a tree as it stands: an extension of griffe for mkdocstrings.

A paragraph in which every line that is not indented begins with `name: ` or `name, name: ` becomes a list.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ARGUMENTS = re.compile(r"(\w+(?:, \w+)*): ")


class ArgumentLists(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Griffe's hook: one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """The docstring with its paragraphs of arguments as lists of Markdown, and its trees as code."""
    return "\n\n".join(_shown(paragraph) for paragraph in text.split("\n\n"))


def _shown(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if any(line.lstrip("│ ").startswith("├──") for line in lines):
        return "\n".join("    " + line for line in lines)
    if not all(line.startswith(" ") or ARGUMENTS.match(line) for line in lines) or lines[:1] == [""]:
        return paragraph
    return "\n".join(ARGUMENTS.sub(r"- **\1**: ", line, count=1) if line[:1] != " " else line for line in lines)
