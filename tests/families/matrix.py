"""The matrix of docs/families.md: a line for each family, written where it is not what came out."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cells import CELLS
from family import BY_ROW, EQUAL

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- matrix -->\n", "<!-- end -->"
HEAD = ["family", "class", "experts", *CELLS, "reasons"]
REFUSED = "refused"
FIGURE = re.compile(r" \(relative difference [^)]*\)")  # which differs between machines

Cell = tuple[str, str, str, str]


def line_of(name: str, kind: str, experts: str, cells: Sequence[Cell]) -> str:
    """A family's line: what each cell is, and why, each reason once."""
    reasons: list[str] = []
    columns = [_column([c for c in cells if c[0] == name], reasons) for name in CELLS]
    return "| " + " | ".join([name, f"`{kind}`", experts, *columns, "; ".join(reasons)]) + " |"


def _column(cells: Sequence[Cell], reasons: list[str]) -> str:
    """'equal', or which targets and methods were refused, and by which reason."""
    told, every = [], list(dict.fromkeys(cell[1] for cell in cells))
    for targets in every:
        own = [cell for cell in cells if cell[1] == targets]
        refused = [cell for cell in own if cell[3] not in (EQUAL, BY_ROW)]
        if refused:
            which = targets if len(refused) == len(own) else f"{targets} {', '.join(cell[2] for cell in refused)}"
            told.append((which, " ".join(str(n) for n in sorted({_number(cell[3], reasons) for cell in refused}))))
    if not told:
        return BY_ROW if any(cell[3] == BY_ROW for cell in cells) else EQUAL
    numbers = {number for _, number in told}
    if len(numbers) == 1 and [which for which, _ in told] == every:
        return f"{REFUSED} ({numbers.pop()})"
    return f"{REFUSED}: " + ", ".join(f"{which} ({number})" for which, number in told)


def _number(outcome: str, reasons: list[str]) -> int:
    reason = FIGURE.sub("", outcome.removeprefix(f"{REFUSED}: ").replace("|", "/").rstrip("."))
    known = [text.partition(" ")[2] for text in reasons]
    if reason not in known:
        reasons.append(f"({len(reasons) + 1}) {reason}")
        known.append(reason)
    return known.index(reason) + 1


def lines() -> dict[str, str]:
    """The page's lines by family."""
    return _lines(PAGE.read_text(encoding="utf-8"))


def write(name: str, line: str) -> None:
    """Puts a family's line in its place; several processes may do so at once."""
    with PAGE.open("r+", encoding="utf-8") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        text = page.read()
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        page.seek(0)
        page.write(text[:start] + _written({**_lines(text), name: line}) + text[stop:])
        page.truncate()
        page.flush()
        os.fsync(page.fileno())


def _table(text: str) -> str:
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def _lines(text: str) -> dict[str, str]:
    return {line.split(" | ")[0].removeprefix("| "): line for line in _table(text).splitlines()[2:]}


def _written(known: dict[str, str]) -> str:
    head = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    return "\n".join([*head, *(known[name] for name in sorted(known)), ""])
