"""RunState: the numbers of one run while no slot has them. ParkedRuns: those of many, in memory and then on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polyvera.errors import LayoutError
from polyvera.train import checkpoint
from polyvera.train.fleet.moments import SlotMoments

TENSORS = ("weight", "grad", "exp_avg", "exp_avg_sq")
STEP = "step"


@dataclass(frozen=True, slots=True, eq=False)
class RunState:
    """A run's numbers, gradient and moments, (num_params,) fp32 on the CPU each; None is all zero.

    It is a value: nobody writes to its tensors.
    """

    weight: Tensor
    grad: Tensor | None = None
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    step: int = 0

    @classmethod
    def of_slot(cls, moments: SlotMoments, index: int) -> RunState:
        """A copy of what a slot holds."""
        weight, *rest = (tensor[index].detach().float().cpu() for tensor in _every(moments))
        grad, first, second = (tensor.clone() if bool(tensor.any()) else None for tensor in rest)
        return cls(weight.clone(), grad, first, second, moments.steps[index])

    def into_slot(self, moments: SlotMoments, index: int) -> None:
        """Makes a slot hold this. Raises LayoutError for another number of parameters."""
        if self.weight.shape != moments.bank.flat[index].shape:
            raise LayoutError(f"a run of {len(self.weight)} numbers, and a slot has {moments.bank.flat.shape[1]}")
        with torch.no_grad():
            for tensor, own in zip(_every(moments), self._tensors(), strict=True):
                tensor[index].zero_() if own is None else tensor[index].copy_(own)
        moments.steps[index] = self.step
        moments.bank.version += 1

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for tensor in self._tensors() if tensor is not None)

    def without_moments(self) -> RunState:
        """Its numbers alone, as if no step had been made."""
        return RunState(self.weight)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, those left out that are all zero."""
        named = {name: tensor for name, tensor in zip(TENSORS, self._tensors(), strict=True) if tensor is not None}
        return named | {STEP: torch.tensor(self.step)}

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        checkpoint.write(path, self.tensors())

    @classmethod
    def read(cls, path: Path) -> RunState:
        """The inverse of `write`. Raises RecipeError for a damaged file."""
        return cls.from_tensors(checkpoint.read(path))

    @classmethod
    def from_tensors(cls, found: Mapping[str, Tensor]) -> RunState:
        """A state from its tensors by name."""
        grad, first, second = (found.get(name) for name in TENSORS[1:])
        return cls(found[TENSORS[0]], grad, first, second, int(found[STEP]))

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.grad, self.exp_avg, self.exp_avg_sq


def _every(moments: SlotMoments) -> Iterator[Tensor]:
    return iter((moments.bank.flat, moments.grads, moments.exp_avg, moments.exp_avg_sq))


class ParkedRuns:
    """States by name: the ones parked last in memory, at most max_bytes of them, and the others on disk.

    folder: None keeps all of them in memory.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder, self._max_bytes, self._num_bytes = folder, max_bytes, 0
        self._states: OrderedDict[str, RunState] = OrderedDict()
        self._on_disk: dict[str, Path] = {}
        self._num_files = 0

    def __len__(self) -> int:
        return len(self._states) + len(self._on_disk)

    @property
    def num_on_disk(self) -> int:
        """How many are on disk alone."""
        return len(self._on_disk)

    def put(self, name: str, state: RunState) -> None:
        """Parks a run that is not parked. Raises OSError, with nothing changed, where another has no room on disk."""
        while self._folder is not None and self._num_bytes + state.num_bytes > self._max_bytes and self._states:
            self._spill(self._folder, next(iter(self._states)))
        self._states[name] = state
        self._num_bytes += state.num_bytes

    def get(self, name: str) -> RunState:
        """The state of a parked run, which stays parked."""
        return self._states[name] if name in self._states else RunState.read(self._on_disk[name])

    def drop(self, name: str) -> None:
        """Forgets a parked run."""
        if name in self._states:
            self._num_bytes -= self._states.pop(name).num_bytes
        else:
            self._on_disk.pop(name).unlink(missing_ok=True)

    def _spill(self, folder: Path, name: str) -> None:
        path = folder / f"{self._num_files + 1}.safetensors"
        self._states[name].write(path)  # before it leaves memory: a full disk loses nothing
        self._num_files += 1
        self._on_disk[name] = path
        self._num_bytes -= self._states.pop(name).num_bytes
