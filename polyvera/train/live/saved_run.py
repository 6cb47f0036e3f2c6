"""read_run, write_run: the state of a run on disk, and after which of its calls it was taken."""

from __future__ import annotations

from pathlib import Path

import torch

from polyvera.train import checkpoint
from polyvera.train.live.run_state import RunState

SEQ = "seq"


def write_run(path: Path, seq: int, state: RunState) -> None:
    """One safetensors file, whole or not at all."""
    checkpoint.write(path, state.tensors() | {SEQ: torch.tensor(seq)})


def read_run(path: Path) -> tuple[int, RunState] | None:
    """The inverse of `write_run`, None where there is no file. Raises RecipeError for a damaged one."""
    if not path.exists():
        return None
    found = checkpoint.read(path)
    return int(found[SEQ]), RunState.from_tensors(found)
