"""Spoken café orders and the ticket that the kitchen wants for each: a small task, made from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DRINKS = (
    "latte",
    "cappuccino",
    "flat white",
    "espresso",
    "mocha",
    "americano",
    "hot chocolate",
    "green tea",
    "black tea",
    "chai",
)
FOOD = ("croissant", "muffin", "cinnamon bun", "bagel", "brownie", "scone")
COUNTS = ("a", "two", "three", "four", "five", "six")
SIZES = ("", "", "small ", "large ")
MILKS = ("", "oat", "soy", "almond")
GREETINGS = ("", "hi, ", "hello, ", "um, ", "good morning, ")
WISHES = ("", "can I get ", "could we have ", "I'd like ", "I'll have ")
PLACES = (("to go", "to go"), ("to take away", "to go"), ("for here", "for here"), ("to eat in", "for here"))
THANKS = ("", " please", ", thanks", ", thank you")


@dataclass(frozen=True, slots=True)
class Order:
    """What the customer says, and the ticket."""

    said: str
    ticket: str

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"Order: {self.said}\nTicket:"

    @property
    def completion(self) -> str:
        """What it should answer."""
        return f" {self.ticket}"


def orders(num_orders: int, seed: int = 0) -> list[Order]:
    """Orders of which no two have the same ticket, so that any cut of the list gives disjoint parts."""
    stream = random.Random(seed)
    found: dict[str, Order] = {}
    while len(found) < num_orders:
        order = _order(stream)
        found.setdefault(order.ticket, order)
    return list(found.values())


def write(path: Path, rows: Iterable[Order]) -> Path:
    """Writes prompts and completions, one JSON object a line."""
    lines = (json.dumps({"prompt": row.prompt, "completion": row.completion}) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _order(stream: random.Random) -> Order:
    items = [_item(stream) for _ in range(stream.choice((1, 2, 2)))]
    spoken_place, place = stream.choice(PLACES)
    wanted = " and ".join(spoken for spoken, _ in items)
    said = stream.choice(GREETINGS) + stream.choice(WISHES) + f"{wanted} {spoken_place}" + stream.choice(THANKS)
    return Order(said[0].upper() + said[1:], " | ".join([*(line for _, line in items), place]))


def _item(stream: random.Random) -> tuple[str, str]:
    """One item as it is said, now and then with a change of mind, and as it stands on the ticket."""
    is_drink = stream.random() < 0.6
    name = stream.choice(DRINKS if is_drink else FOOD)
    size = stream.choice(SIZES) if is_drink else ""
    milk = stream.choice(MILKS) if is_drink else ""
    spoken, number = _number(stream)
    said = f"{spoken} {size}{name}{'s' if number > 1 else ''}" + (f" with {milk} milk" if milk else "")
    return said, f"{number} {size}{name}" + (f" + {milk}" if milk else "")


def _number(stream: random.Random) -> tuple[str, int]:
    first = stream.randrange(len(COUNTS))
    if stream.random() >= 0.15:
        return COUNTS[first], first + 1
    second = stream.choice([i for i in range(1, len(COUNTS)) if i != first])
    return f"{COUNTS[first]}, {stream.choice(('no', 'sorry'))}, {COUNTS[second]}", second + 1
