"""Rows of every task that a tiny model can learn something from, and the folder of a model for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_folder import save_tiny, save_tiny_encoder, save_tiny_seq2seq

from polyvera.model.config import CAUSAL_LM, ENCODER_DECODER
from polyvera.model.task import (
    LABEL,
    LM,
    MULTI_LABEL,
    ORPO,
    PAIRS,
    PREFERENCE,
    REGRESSION,
    SEQ2SEQ,
    SIMILARITY,
    TASKS,
    TOKEN_LABEL,
)

Row = dict[str, Any]
SAVES = {CAUSAL_LM: save_tiny, ENCODER_DECODER: save_tiny_seq2seq}  # others an encoder
TAGS = ["B-PER", "I-PER", "O", "B-LOC"]


def _tagged(i: int) -> Row:
    words = [f"w{(3 * i + k) % 30}" for k in range(2 + i % 4)]
    return {"tokens": words, "tags": [TAGS[(i + k) % 4] for k in range(len(words))]}


ROWS: Mapping[str, Callable[[int], Row]] = {
    LM: lambda i: {"prompt": f"w{i % 20} w{i % 20 + 1}", "completion": f"w{i % 20 + 2}"},
    SEQ2SEQ: lambda i: {"prompt": f"w{i % 20}" + " w9" * (i % 3), "completion": f"w{i % 20 + 2}" + " w7" * (i % 4)},
    LABEL: lambda i: {"text": f"w{i} w{i + 1}" + " w9" * (i % 3), "label": "ab"[i % 2]},
    MULTI_LABEL: lambda i: {"text": f"w{i} w{i + 1}" + " w9" * (i % 3), "label": [["x"], ["x", "y"], [], ["z"]][i % 4]},
    REGRESSION: lambda i: {"text": f"w{i}", "text_pair": f"w{i + 1}" + " w9" * (i % 3), "label": 0.25 * (i % 5)},
    TOKEN_LABEL: _tagged,
    PAIRS: lambda i: {"anchor": f"w{i} w{i + 1}", "positive": f"w{i + 2}" + " w9" * (i % 3), "negative": f"w{i + 5}"},
    SIMILARITY: lambda i: {"text": f"w{i}", "text_pair": f"w{i + 1}" + " w9" * (i % 3), "label": 0.25 * (i % 5)},
    PREFERENCE: lambda i: {"prompt": f"w{i}", "chosen": f"w{i + 1} w{i + 2}", "rejected": "w39" + " w38" * (i % 3)},
}
ROWS = {**ROWS, ORPO: ROWS[PREFERENCE]}
WITH_HEAD = [name for name, row in TASKS.items() if row.has_head]


def task_rows(task: str, num_rows: int, first: int = 0) -> list[Row]:
    """So many rows of a task, others for another first one."""
    return [ROWS[task](first + i) for i in range(num_rows)]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """A .jsonl file of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_base(task: str, folder: Path) -> Path:
    """The folder of a tiny model that such an adapter is for."""
    return SAVES.get(TASKS[task].kind, save_tiny_encoder)(folder)
