"""The README and the pages of docs/ as tests read them: their code, their commands, a folder to run them in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tiny_folder import save_tiny
from tiny_models import counting_rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
MODEL = '"smollm2"'


def code_blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The polyvera commands that a page shows, in order, as words."""
    for block in code_blocks("bash", page):
        for line in block.splitlines():
            if line.startswith("polyvera "):
                yield shlex.split(line.replace("$'", "'"), comments=True)[1:]


def for_the_tiny_model(code: str, num_steps: int = 3) -> str:
    """The same code or recipe, on the model in the folder `base` and for a few steps."""
    return re.sub(r"max_steps( ?= ?)\d+", rf"max_steps\g<1>{num_steps}", code.replace(MODEL, '"base"'))


def write_demo_folder(folder: Path) -> None:
    """What scripts/demo leaves, with a tiny model in place of the wheel's: rows to train on, others, the examples."""
    save_tiny(folder / "base")
    rows = [json.dumps(row) + "\n" for row in counting_rows(50)]
    files = {"runs/demo/orders.jsonl": "".join(rows[:40]), "runs/demo/held-out.jsonl": "".join(rows[40:])}
    for path in sorted((ROOT / "examples").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        assert MODEL in text
        files[f"examples/{path.name}"] = for_the_tiny_model(text)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
