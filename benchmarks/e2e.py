"""The E2E data as prompts and completions, for `polyvera compare docs/results/e2e/comparison.toml`.

    python benchmarks/e2e.py DATA OUTPUT [--test 100]

DATA holds the data set as {train,test}.jsonl with rows {"mr": ..., "refs": [...]}. Every reference is a row to train
on; the test rows are the first meaning representations, each with all its references.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def asked(row: dict[str, Any], refs: list[str]) -> dict[str, Any]:
    """One row to train on or to test with."""
    return {"prompt": f"{row['mr']}\n", "completion": refs[0], "refs": refs}


def write(path: Path, given: Iterator[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given), encoding="utf-8")


def main() -> None:
    """Writes train.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--test", type=int, default=100, help="meaning representations to test with")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write(
        args.output / "train.jsonl",
        (asked(row, [ref]) for row in rows(args.data / "train.jsonl") for ref in row["refs"]),
    )
    tests = (asked(row, row["refs"]) for row in rows(args.data / "test.jsonl"))
    write(args.output / "test.jsonl", (row for _, row in zip(range(args.test), tests)))


if __name__ == "__main__":
    main()
