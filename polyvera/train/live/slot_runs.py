"""SlotRuns: which run is in which slot of the bank; the others are parked. What a slot holds moves without a change."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from polyvera.train.fleet.moments import SlotMoments
from polyvera.train.live.operation import Operation, Result, SetState
from polyvera.train.live.run_state import ParkedRuns, RunState


@dataclass(eq=False)
class LiveRun:
    """A run that is open: what it waits for, and the bank's own index of its slot, None while it is parked."""

    name: str
    waiting: deque[tuple[Operation, Future[Result]]] = field(default_factory=deque)
    index: int | None = None
    has_gradient: bool = False

    def next(self, *kinds: type[Operation]) -> bool:
        """Whether what it waits for first is of those kinds."""
        return bool(self.waiting) and isinstance(self.waiting[0][0], kinds)


class SlotRuns:
    """The open runs over the slots of a bank: the ones used longest ago make room for those that want one."""

    def __init__(self, moments: SlotMoments, parked: ParkedRuns) -> None:
        self.moments, self.parked = moments, parked
        self._seated: dict[int, LiveRun] = {}  # by index, the one used longest ago first

    def seat(self, run: LiveRun, beside: Sequence[LiveRun]) -> None:
        """Gives a run a slot, and none of those beside it loses its own; they are at most as many as the slots."""
        if run.index is None:
            index = self._free_index(beside)
            self.parked.get(run.name).into_slot(self.moments, index)
            self.parked.drop(run.name)
            run.index = index
        self._seated.pop(run.index, None)
        self._seated[run.index] = run

    def drop(self, run: LiveRun) -> None:
        """Forgets a run."""
        if run.index is None:
            self.parked.drop(run.name)
        else:
            del self._seated[run.index]

    def state(self, run: LiveRun) -> RunState:
        """A run's state, wherever it is."""
        return self.parked.get(run.name) if run.index is None else RunState.of_slot(self.moments, run.index)

    def set(self, run: LiveRun, asked: SetState) -> None:
        """Puts a state in the place of a run's."""
        state = asked.state if asked.with_moments else asked.state.without_moments()
        run.has_gradient = state.grad is not None
        if run.index is None:
            self.parked.drop(run.name)
            self.parked.put(run.name, state)
        else:
            state.into_slot(self.moments, run.index)

    def _free_index(self, chosen: Sequence[LiveRun]) -> int:
        num_slots = self.moments.bank.num_slots
        if len(self._seated) < num_slots:
            return next(i for i in range(num_slots) if i not in self._seated)
        index, run = next((i, run) for i, run in self._seated.items() if run not in chosen)
        self.parked.put(run.name, RunState.of_slot(self.moments, index))
        run.index = None
        del self._seated[index]
        return index
