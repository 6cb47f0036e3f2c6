"""What the verbs show: every value in its column, none of it taken for markup."""

import io
import re

from rich.console import Console

from polyvera.adapter.spec import AdapterSpec
from polyvera.cli.tables import console, cost_table, fact_table, many_table, score_table, table_of
from polyvera.plan import bytes_text, cost, full_cost

SITES = {"a": (8, 6), "b": (8, 8)}


def shown(table):
    page = Console(file=io.StringIO(), width=200)
    page.print(table)
    return page.file.getvalue()


def test_columns_are_the_keys_and_values_are_text():
    text = shown(table_of([{"name": "[bold]x[/bold]", "num": 12}, {"name": "y", "num": 3}], "Title", ("num",)))
    assert "Title" in text and "[bold]x[/bold]" in text, "a name is no markup"
    ends = {line.rindex(num) + len(num) for line in text.splitlines() for num in ("12", "3") if f" {num} " in line}
    assert len(ends) == 1, "numbers end below each other"


def test_an_empty_table_is_shown():
    assert shown(table_of([])).strip() == ""


def test_scores_have_a_row_for_each_model_and_a_column_for_each_score():
    text = shown(score_table({"base": {"loss": 2.0}, "acme": {"loss": 1.23456, "accuracy": 0.5}}))
    cells = [re.split(r"\s*[│┃]\s*", line.strip("│┃")) for line in text.splitlines() if "│" in line or "┃" in line]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["", "loss", "accuracy"],
        ["base", "2", ""],
        ["acme", "1.235", "0.5"],
    ]


def test_costs_stand_side_by_side():
    own, whole = cost(AdapterSpec(rank=4), SITES, 1000), full_cost(1000)
    text = shown(cost_table([own, whole], "tiny"))
    assert "tiny" in text and "vera" in text and f"{own.num_params:,}" in text and "1,000" in text


def test_many_adapters_cost_so_many_times_as_much():
    own = cost(AdapterSpec(rank=4), SITES, 1000)
    text = shown(many_table([own, full_cost(1000)], 5000, 8))
    for words in ("5,000 adapters", bytes_text(5000 * own.stored_bytes), bytes_text(own.fleet_bytes(8)), "8 at a time"):
        assert words in text
    assert "at a time" not in shown(many_table([own], 10))


def test_facts_are_pairs():
    lines = shown(fact_table({"name": "acme@1", "labels": "a, [b]"})).splitlines()
    assert [line.strip().split(maxsplit=1) for line in lines] == [["name", "acme@1"], ["labels", "a, [b]"]]


def test_a_piped_page_is_wide():
    for found in (console(), console(error=True)):
        assert not found.is_terminal and found.width == 160
