"""What an adapter's score loses when its numbers are stored in fewer bits: intents, ten tenants of fifteen classes.

    python benchmarks/bits.py CLINC150 [--shots 10] [--steps 60] [--seeds 2] [--limit 150] [--output docs/results/bits]

CLINC150 is a folder with train.jsonl and test.jsonl, rows of text, label and domain; a domain is a tenant. MiniLM, one
fleet for each method and seed, trained once and stored in every dtype. `head` is the dtype of the head's tensors, which
are rounded as the rest or left as they are. Bytes are those of tensors, as `polyvera plan` counts them.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from polyvera import Recipe
from polyvera.adapter.adapter import Adapter
from polyvera.data.tables import Table, read
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.load import Base
from polyvera.store.file.codec import encode, read_header
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.rounding import rounded

RATES = {"vera": 0.2, "lora": 0.01}
HEADS = ("alike", "float32")


@dataclass(frozen=True)
class Row:
    """One fleet's mean accuracy in one dtype, and the mean bytes of its tensors, the head's apart."""

    method: str
    seed: int
    stored: str
    head: str
    accuracy: float
    adapter_bytes: int
    head_bytes: int
    relative_error: float


def tenants(data: Path, folder: Path, shots: int, limit: int) -> dict[str, Table]:
    """Writes a file of rows to train on for each domain; returns the rows to test on."""
    texts: dict[str, dict[str, list[str]]] = {}
    for split, most in (("train", shots), ("test", limit // 15)):
        rows: dict[tuple[str, str], list[str]] = defaultdict(list)
        for line in (data / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[row["domain"], row["label"]].append(json.dumps({"text": row["text"], "label": row["label"]}))
        for (domain, _), lines in rows.items():
            texts.setdefault(split, {}).setdefault(domain, []).extend(lines[:most])
    for split, by_domain in texts.items():
        (folder / split).mkdir()
        for domain, lines in by_domain.items():
            (folder / split / f"{domain}.jsonl").write_text("\n".join(lines))
    return {path.stem: read(path) for path in sorted((folder / "test").iterdir())}


def with_head_of(adapter: Adapter, exact: Adapter) -> Adapter:
    """The adapter with the head's numbers as they were trained."""
    flat = adapter.flat.clone()
    for key, _ in adapter.layout.head:
        entry = adapter.layout.entries[key]
        flat[entry.offset : entry.offset + entry.size] = exact.flat[entry.offset : entry.offset + entry.size]
    return replace(adapter, flat=flat)


def measured(base: Base, adapters: dict[str, Adapter], tables: dict[str, Table], dtype: str, head: str) -> Row:
    """The scores of a fleet that is stored so."""
    stored = {name: rounded(adapter, dtype) for name, adapter in adapters.items()}
    if head != HEADS[0]:
        stored = {name: with_head_of(adapter, adapters[name]) for name, adapter in stored.items()}
    found = list(fleet_scores(base, stored, tables, batch_size=64))
    first = next(iter(adapters.values()))
    index = read_header(encode(first, dtype)).index
    heads = {key for key, _ in first.layout.head}
    head_bytes = sum(t.end - t.begin for name, t in index.tensors.items() if name.removesuffix(".scale") in heads)
    lost = [float((stored[n].flat - a.flat).norm() / a.flat.norm()) for n, a in adapters.items()]
    whole_head = 4 * first.layout.num_head_params
    return Row(
        "",
        0,
        dtype,
        head,
        fmean(one.scores["accuracy"] for one in found),
        index.data_bytes - head_bytes,
        head_bytes if head == HEADS[0] else whole_head,
        fmean(lost),
    )


def rows(asked: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Every method, seed, dtype and head."""
    tables = tenants(asked.data, folder, asked.shots, asked.limit)
    for method, lr in RATES.items():
        for seed in range(asked.seeds):
            recipe = Recipe(
                model="minilm",
                data=str(folder / "train"),
                fleet=True,
                method=method,
                lr=lr,
                head_lr=0.01,
                max_steps=asked.steps,
                batch_size=8,
                run_seed=seed,
            )
            result = train_fleet(recipe)
            assert result.base is not None
            adapters = {o.name: o.adapter for o in result.of(FINISHED) if o.adapter is not None}
            for dtype in STORED_DTYPES:
                for head in HEADS if dtype != "float32" else HEADS[:1]:
                    one = measured(result.base, adapters, tables, dtype, head)
                    yield replace(one, method=method, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(asked, Path(folder)):
            print(row, flush=True)
            found.append(row)
    if asked.output is not None:
        asked.output.mkdir(parents=True, exist_ok=True)
        with (asked.output / "bits.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, Row.__dataclass_fields__)
            writer.writeheader()
            writer.writerows({name: getattr(row, name) for name in Row.__dataclass_fields__} for row in found)


if __name__ == "__main__":
    main()
