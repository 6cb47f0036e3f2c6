import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from polyvera.model.load import Base


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    """The Trainer collects garbage at each run: leave the imported libraries out of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def base() -> Base:
    return Base(make_model(), make_tokenizer())


@pytest.fixture
def classifier() -> Base:
    return Base(make_classifier(), make_tokenizer())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tenants of unequal size, each with rows of its own."""
    place = tmp_path / "tenants"
    place.mkdir()
    for k in range(5):
        rows = counting_rows(9 + 3 * k)
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[k:] + rows[:k]))
    return place


Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows to a file; returns its path."""

    def write(rows: Rows, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def counting(jsonl: Callable[..., str]) -> str:
    return jsonl(counting_rows(24), "counting.jsonl")


@pytest.fixture
def classes(jsonl: Callable[..., str]) -> str:
    rows = [{"text": f"w{i % 7} w{20 + i % 5}", "label": ("even", "odd")[i % 2]} for i in range(24)]
    return jsonl(rows, "classes.jsonl")
