import gc
import json
from pathlib import Path

import pytest
from tiny_models import counting_rows


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    """The Trainer collects garbage at each run: leave the imported libraries out of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tenants of unequal size, each with rows of its own."""
    place = tmp_path / "tenants"
    place.mkdir()
    for k in range(5):
        rows = counting_rows(9 + 3 * k)
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[k:] + rows[:k]))
    return place
