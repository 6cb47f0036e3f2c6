"""What the verbs show: rich tables of costs, adapters and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyvera.plan import Cost, bytes_text, plan_rows

NUMERIC = ("rank", "trained", "stored", "per GiB", "slot", "basis", "training", "of it head", "stored without head")


def table_of(rows: Sequence[Mapping[str, object]], title: str = "", numeric: Iterable[str] = ()) -> Table:
    """One row for each mapping; the columns are the keys of the first."""
    table = Table(title=title or None, title_justify="left", header_style="bold", title_style="bold")
    right = set(numeric)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table


def cost_table(costs: Sequence[Cost], title: str) -> Table:
    """Costs side by side."""
    return table_of(plan_rows(costs), title, NUMERIC)


def many_table(costs: Sequence[Cost], num_adapters: int, num_slots: int = 0) -> Table:
    """What so many adapters take up on disk, resident in one server's memory, and num_slots at a time in training."""
    at_a_time = f"training {num_slots:,} at a time"
    rows = [
        {
            "method": cost.method,
            "on disk": bytes_text(num_adapters * cost.stored_bytes),
            "all resident, fp32": bytes_text(num_adapters * cost.slot_bytes),
            **({at_a_time: "" if cost.rank is None else bytes_text(cost.fleet_bytes(num_slots))} if num_slots else {}),
        }
        for cost in costs
    ]
    return table_of(rows, f"{num_adapters:,} adapters", ("on disk", "all resident, fp32", at_a_time))


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Named results side by side: a row for each model, a column for each score."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = [{"": who, **{n: f"{row[n]:.4g}" if n in row else "" for n in names}} for who, row in scores.items()]
    return table_of(rows, "", names)


def fact_table(facts: Mapping[str, object]) -> Table:
    """Names and values, one pair a row."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(str(value)))
    return table


def console(*, error: bool = False) -> Console:
    """The terminal, or a plain wide page where the output is piped."""
    found = Console(stderr=error, highlight=False)
    return found if found.is_terminal else Console(stderr=error, highlight=False, width=160)
