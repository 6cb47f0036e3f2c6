"""The demo: its task is fair, and the whole of it runs on a tiny model."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import save_tiny

from polyvera.store.registry import Registry

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_orders_come_from_their_seed_and_no_ticket_comes_twice() -> None:
    from orders import orders

    made = orders(400)
    assert made == orders(400) != orders(400, seed=1)
    assert len({order.ticket for order in made}) == len({order.said for order in made}) == 400
    assert made[:100] == orders(100), "held-out orders stay the same for any number of training orders"


def test_a_ticket_says_what_the_customer_ended_with() -> None:
    from orders import COUNTS, PLACES, orders

    for order in orders(200):
        said = order.said[0].lower() + order.said[1:]
        *items, place = order.ticket.split(" | ")
        assert any(spoken in said for spoken, short in PLACES if short == place)
        for item in items:
            number, _, rest = item.partition(" ")
            name, _, milk = rest.partition(" + ")
            plural = name + ("s" if int(number) > 1 else "")
            assert f"{COUNTS[int(number) - 1]} {plural}{f' with {milk} milk' if milk else ''}" in said


def test_the_demo_runs_and_stores_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)  # put back what the demo sets
    import demo
    import measure

    folder, processes = tmp_path / "demo", []

    def alone(work: Callable[..., Any], *given: object) -> Any:
        """A process for the first run only: each takes seconds to start."""
        processes.append(work)
        return measure.alone(work, *given) if len(processes) == 1 else work(*given)

    monkeypatch.setattr(demo, "alone", alone)
    words = ["--quick", "--model", str(save_tiny(tmp_path / "tiny")), "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    demo.main()
    shown = capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (folder / "held-out.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and set(rows[0]) == {"prompt", "completion"}
    assert len(held_out) == 4 and {row["completion"] for row in rows}.isdisjoint(row["completion"] for row in held_out)
    (ref,) = Registry(folder / "store").list()
    adapter = Registry(folder / "store").get(ref)
    for text in (f"{adapter.num_params:,}", f"{ref.num_bytes:,} bytes", "of 4", "a full copy", "peak memory"):
        assert text in shown, text
    assert len(processes) == 3
