"""tell: what a run says of itself, a line at a time."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

Tell = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Prints a line beside the results, an empty one not."""
    if line:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def to_nobody(line: str) -> None:
    """Says nothing."""
