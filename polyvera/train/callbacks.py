"""What happens beside the steps of a run: the best numbers are kept, ranks are pruned, progress is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyvera.train.budget import Allocator
from polyvera.train.checkpoint import trained, write

LINES = 20  # progress lines of a run whose output is not a terminal


class Stateful(Protocol):
    """Something whose state goes into a checkpoint, as tensors."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


class KeepBest(TrainerCallback):
    """Keeps the numbers of the lowest validation loss in a file; ends the run after `patience` without a lower one.

    Only evaluations after the step `begin` count: a rank budget is kept from then on.
    """

    def __init__(self, model: nn.Module, path: Path, patience: int | None, begin: int = 0) -> None:
        self.model, self.path, self.patience, self.begin = model, path, patience, begin
        self.loss, self.step, self.since = inf, 0, 0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        """Compares the new validation loss with the best one."""
        loss = given["metrics"]["eval_loss"]
        if state.global_step <= self.begin:
            return control
        if loss < self.loss:
            self.loss, self.step, self.since = loss, state.global_step, 0
            if state.is_world_process_zero:
                write(self.path, trained(self.model))
        else:
            self.since += 1
        control.should_training_stop = control.should_training_stop or self.stops
        return control

    @property
    def stops(self) -> bool:
        """Whether patience is at an end."""
        return self.patience is not None and self.since >= self.patience

    def state(self) -> dict[str, Tensor]:
        """Loss, step and evaluations since, in float64."""
        return {"best": torch.tensor([self.loss, self.step, self.since], dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        loss, step, since = state["best"].tolist()
        self.loss, self.step, self.since = loss, int(step), int(since)


class Pruning(TrainerCallback):
    """Lets the allocator score and prune after each optimizer step, while the gradients are still there."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """One step of the allocator."""
        self.allocator.step(state.global_step)


@dataclass
class Shown(TrainerCallback):
    """Progress: a bar in a terminal, else a line now and then."""

    console: Console = field(default_factory=lambda: Console(stderr=True))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Starts the bar."""
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Moves the bar on."""
        shown = {k: v for k, v in given["logs"].items() if k in ("loss", "eval_loss", "learning_rate")}
        line = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
        if not line:
            return
        self.bar.update(self.task, completed=state.global_step, description=line)
        if not self.console.is_terminal and (
            "eval_loss" in shown or state.global_step % max(1, state.max_steps // LINES) == 0
        ):
            self.console.print(f"step {state.global_step}/{state.max_steps}: {line}", highlight=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Ends the bar."""
        self.bar.stop()
