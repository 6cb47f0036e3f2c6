import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import save_tiny
from tiny_models import counting_rows

from polyvera.adapter.method import METHODS
from polyvera.compare.baseline import FULL

FIRST, *_ = METHODS


@pytest.fixture
def choices(tmp_path: Path) -> dict[str, Any]:
    """Two methods and full fine-tuning on one task of a tiny model."""
    for name, num in (("train", 16), ("test", 4)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(num)))
    model = save_tiny(tmp_path / "model")
    return {
        "methods": [FULL, FIRST],
        "seeds": [0, 1],
        "factors": [1.0, 3.0],
        "extensions": 0,
        "settings": {"model": str(model), "max_steps": 2, "batch_size": 4, "validation": 0.25},
        "method": {FIRST: {"rank": 2}},
        "task": {
            "count": {
                "data": str(tmp_path / "train.jsonl"),
                "test": str(tmp_path / "test.jsonl"),
                "score": "token_accuracy",
                "also": ["perplexity"],
            }
        },
    }
