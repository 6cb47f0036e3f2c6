"""What one way to train costs, measured in a process of its own, so that no run's memory counts for another's."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers

from polyvera import Recipe, Registry
from polyvera.model.load import locate
from polyvera.store.file.codec import encode
from polyvera.train.trainer import TrainResult, train


@dataclass(frozen=True, slots=True)
class Measured:
    """One training run.

    stored_bytes: of the file that holds what was trained. peak_bytes: the most memory that its process held. step_s:
    the fastest of the first steps, whose batches every run has in common. total_s: of all num_steps steps.
    """

    what: str
    num_trained: int
    stored_bytes: int
    peak_bytes: int
    step_s: float
    total_s: float
    num_steps: int


class Stopwatch(transformers.TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts a step."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Ends it."""
        self.seconds.append(time.perf_counter() - self._began)


def quiet() -> None:
    """No bars but polyvera's own."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def alone(work: Callable[..., Measured], *given: object) -> Measured:
    """Calls a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet) as pool:
        return pool.submit(work, *given).result()


def published(recipe: Recipe, num_timed: int, store: str, name: str) -> Measured:
    """Trains an adapter, with its progress shown, and publishes it in a registry."""
    result, watch = _watched(recipe, progress=True)
    assert result.adapter is not None
    ref = Registry(store).put(name, result.adapter)
    return _measured(result, watch, num_timed, ref.num_bytes)


def tried(recipe: Recipe) -> Measured:
    """Trains and keeps nothing; full fine-tuning would store another copy of the model's files."""
    result, watch = _watched(recipe, progress=False)
    files = Path(locate(recipe.model)).glob("*.safetensors")
    size = sum(file.stat().st_size for file in files) if result.adapter is None else len(encode(result.adapter))
    return _measured(result, watch, len(watch.seconds), size)


def _watched(recipe: Recipe, *, progress: bool) -> tuple[TrainResult, Stopwatch]:
    watch = Stopwatch()
    return train(recipe, progress=progress, callbacks=[watch]), watch


def _measured(result: TrainResult, watch: Stopwatch, num_timed: int, stored_bytes: int) -> Measured:
    return Measured(
        what=_shown(result),
        num_trained=result.num_trained,
        stored_bytes=stored_bytes,
        peak_bytes=_peak_bytes(),
        step_s=min(watch.seconds[:num_timed]),
        total_s=sum(watch.seconds),
        num_steps=result.num_steps,
    )


def _shown(result: TrainResult) -> str:
    if result.adapter is None:
        return "a full copy"
    spec = result.adapter.spec
    return f"{spec.method}, rank {spec.rank or spec.row.rank}"


def _peak_bytes() -> int:
    """Of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent process too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
