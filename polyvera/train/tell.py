"""tell: what a run says of itself, a line at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from polyvera.data.tables import Table
from polyvera.model.prompt import prompt_form_text
from polyvera.train.tenants import Tables

Tell = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Prints a line beside the results, an empty one not."""
    if line:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def to_nobody(line: str) -> None:
    """Says nothing."""


def tell_form(table: Table, tokenizer: Any, tell: Tell) -> None:
    """Says how a model is asked, or what the rows of a head were taken for."""
    if table.prompt_form:
        tell(prompt_form_text(tokenizer, table.prompt_form))
    elif table.row.has_head:
        tell(table.head_text)


def tell_rows(tables: Tables, tokenizer: Any, tell: Tell) -> None:
    """Says how a model is asked, and which columns are not read."""
    tell_form(tables.training, tokenizer, tell)
    tell_unread(tables, tell)


def tell_unread(tables: Tables, tell: Tell) -> None:
    """Says which columns of each source are not read."""
    parts = (tables.training, tables.validation, tables.test)
    for text in dict.fromkeys(table.unread_text for table in parts if table is not None and table.unread):
        tell(text)


def told_once(tell: Tell) -> Callable[[Tables], None]:
    """tell_unread() for one tenant after another, of those whose unread columns no other has had before."""
    known = set[tuple[str, ...]]()

    def told(tables: Tables) -> None:
        own = tuple(column for column, _ in tables.training.unread)
        if own not in known:
            known.add(own)
            tell_unread(tables, tell)

    return told
