"""LiveTrainer: a fleet with an open door. Runs come and go at any time, and each asks for its own passes and steps.

A round takes the next pass of every run that waits, in the same batches, leaves each gradient in its slot, and then
makes the optimizer steps that were asked for. Runs beyond the slots are parked. A run's numbers are those that the same
calls would give alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from threading import Condition, Lock

from torch import Tensor

from polyvera.adapter.adapter import NOTHING, Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.hashing import initial
from polyvera.adapter.inject import extract
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.errors import ConflictError, LayoutError, NonFiniteError, NotFoundError
from polyvera.model.config import context_length, pad_token, vocabulary_size
from polyvera.model.load import Base
from polyvera.train.fleet.adamw import AdamSettings, ParamGroup
from polyvera.train.fleet.fleet import BATCH_TOKENS, GPU_BATCH_TOKENS
from polyvera.train.fleet.moments import SlotMoments, clip_factor
from polyvera.train.live.mixed_pass import MixedPass, Pace
from polyvera.train.live.operation import (
    Operation,
    OptimizerStep,
    Pass,
    PassResult,
    Result,
    SetState,
    StepResult,
    TakeState,
)
from polyvera.train.live.run_state import ParkedRuns, RunState
from polyvera.train.live.slot_runs import LiveRun, SlotRuns
from polyvera.train.trained_numbers import check_numbers

PARKED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class RunningPass:
    """A pass of this round, and the run's gradient before it, None for zero."""

    run: LiveRun
    asked: Pass
    future: Future[Result]
    before: Tensor | None


class LiveTrainer:
    """Runs that train over one base with one bank.

    base: with the bank in it. batch_tokens: the most tokens of a batch with its padding. folder: where parked runs
    beyond parked_bytes lie, None for memory alone. pace: called with the seconds of each batch, so that it may rest.
    is_deterministic: each run's rows are in batches of their own.

    submit() may be called by any thread, round() by one at a time.
    """

    def __init__(
        self,
        base: Base,
        bank: Bank,
        *,
        model: str = "",
        batch_tokens: int | None = None,
        folder: Path | None = None,
        parked_bytes: int = PARKED_BYTES,
        pace: Pace = lambda seconds: None,
        is_deterministic: bool = False,
    ) -> None:
        device = bank.flat.device.type
        self.base, self.bank, self.moments, self.model = base, bank, SlotMoments(bank), model
        self.num_tokens, self.max_length = vocabulary_size(base.model), context_length(base.model, base.tokenizer)
        tokens = batch_tokens or BATCH_TOKENS.get(device, GPU_BATCH_TOKENS)
        pad_id = pad_token(base.model, base.tokenizer)
        self.passes = MixedPass(base, bank, pad_id, tokens, pace=pace, is_deterministic=is_deterministic)
        self._groups = (ParamGroup(0, bank.layout.num_params, 1.0),)
        self._template = replace(extract(bank, bank.first), base=fingerprint(base.model), model=model)
        self._fresh = RunState.of_slot(self.moments, 0)
        self._runs: dict[str, LiveRun] = {}
        self._slots = SlotRuns(self.moments, ParkedRuns(folder, parked_bytes))
        self._line: dict[str, LiveRun] = {}  # those that wait, the longest first
        self._changed, self._round = Condition(Lock()), Lock()

    def open(self, name: str, state: RunState | None = None) -> None:
        """Opens a run, a fresh adapter or a state. Raises ConflictError where it is open, LayoutError."""
        self._check_fits(state)
        with self._round:
            if name in self._runs:
                raise ConflictError(f"the run {name!r} is open already")
            self._slots.parked.put(name, state or self._fresh)
            self._runs[name] = LiveRun(name, has_gradient=state is not None and state.grad is not None)

    def close(self, name: str) -> None:
        """Forgets a run; what it still waits for is cancelled. Raises NotFoundError."""
        with self._round:
            run = self._run(name)
            with self._changed:
                del self._runs[name]
                self._line.pop(name, None)
            self._slots.drop(run)
            for _, future in run.waiting:
                future.cancel()

    def submit(self, name: str, asked: Operation) -> Future[Result]:
        """Puts a wish at the end of a run's own line.

        Returns PassResult, StepResult, RunState or None later; its error is NonFiniteError where numbers are not
        finite, and the run is then as it was before, or whatever the model raised for these rows alone. Raises
        NotFoundError, LayoutError and DataError before anything is computed.
        """
        if isinstance(asked, Pass):
            for row in asked.rows:
                row.check(self.num_tokens, self.max_length)
        self._check_fits(asked.state if isinstance(asked, SetState) else None)
        future: Future[Result] = Future()
        with self._changed:
            run = self._run(name)
            run.waiting.append((asked, future))
            self._line.setdefault(name, run)
            self._changed.notify_all()
        return future

    def wait(self, timeout_s: float) -> bool:
        """Waits until a run wants something; returns whether one does."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._line), timeout_s)

    def round(self) -> bool:
        """One pass, and the steps behind it, of up to as many runs as there are slots; returns whether any waited."""
        with self._round:
            with self._changed:
                line = list(self._line.values())
            for run in line:
                self._answer_states(run)
            chosen = self._seated([run for run in line if run.waiting][: self.bank.num_slots])
            self._pass([run for run in chosen if run.next(Pass)])
            while stepping := [run for run in chosen if run.next(OptimizerStep)]:
                self._step(stepping)
            for run in chosen:
                self._answer_states(run)
            self._line_up(line, chosen)
            return bool(line)

    def adapter(self, state: RunState, scores: dict[str, float] | None = None, lr: float | None = None) -> Adapter:
        """A state's numbers as an adapter, which shares them. Raises DivergedError, with the lr, for what is none."""
        check_numbers([state.weight], lr)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self._template, flat=state.weight, scores=scores or NOTHING, created=created)

    def fresh(self, seed: int | None = None) -> RunState:
        """What a run starts as. seed: of the trained factors that are drawn; None is the bank's own."""
        if seed is None:
            return self._fresh
        weight, spec = self._fresh.weight.clone(), replace(self.bank.spec_of(0), seed=seed)
        for entry in self.bank.layout.entries.values():
            if entry.letter in self.bank.layout.method.hashed:
                weight[entry.offset : entry.offset + entry.size] = initial(entry, spec).flatten()
        return RunState(weight)

    @property
    def names(self) -> list[str]:
        """The runs that are open."""
        return list(self._runs)

    @property
    def num_parked(self) -> int:
        """How many of them are in no slot."""
        return len(self._slots.parked)

    def _run(self, name: str) -> LiveRun:
        if name not in self._runs:
            raise NotFoundError(f"there is no run {name!r}: open it first")
        return self._runs[name]

    def _check_fits(self, state: RunState | None) -> None:
        if state is not None and len(state.weight) != self.bank.layout.num_params:
            num = self.bank.layout.num_params
            raise LayoutError(f"the state has {len(state.weight):,} numbers, and a run here has {num:,}")

    def _answer(self, run: LiveRun, asked: Operation) -> RunState | None:
        if not isinstance(asked, SetState):
            return self._slots.state(run)
        self._slots.set(run, asked)
        return None

    def _line_up(self, line: Iterable[LiveRun], chosen: Sequence[LiveRun]) -> None:
        """Those who want more go to the end of the line, the others leave it."""
        with self._changed:
            for run in chosen:
                self._line.pop(run.name)
                if run.waiting:
                    self._line[run.name] = run
            for run in line:
                if not run.waiting:
                    self._line.pop(run.name, None)

    def _seated(self, wanted: Sequence[LiveRun]) -> list[LiveRun]:
        """Those of them that have a slot now; who cannot be brought back fails alone."""
        found = []
        for run in wanted:
            try:
                self._slots.seat(run, wanted)
                found.append(run)
            except Exception as error:  # such as a file that is damaged, or a full disk
                run.waiting.popleft()[1].set_exception(error)
        return found

    def _pass(self, runs: Iterable[LiveRun]) -> None:
        taken = [running for run in runs if (running := self._taken(run)) is not None]
        if not taken:
            return
        self.base.model.train()
        with warnings.catch_warnings():  # gradients are views, as they are meant to be
            warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
            results = self._results(taken)
        norms = self.moments.norms().tolist()
        for one, result in zip(taken, results, strict=True):
            self._settle(one, _checked(result, norms[one.run.index or 0]))

    def _taken(self, run: LiveRun) -> RunningPass | None:
        """The pass that a run waits for, None where it was cancelled."""
        asked, future = run.waiting.popleft()
        assert isinstance(asked, Pass)
        if not future.set_running_or_notify_cancel():
            return None
        before = self.moments.grads[run.index].clone() if run.has_gradient else None
        return RunningPass(run, asked, future, before)

    def _results(self, taken: Sequence[RunningPass]) -> list[PassResult | Exception]:
        """What each pass gives; where the mixed batches raise, each alone, so that one's rows harm no other's."""
        try:
            return [*self.passes.run([(self._slot(one), one.asked) for one in taken])]
        except Exception:
            for one in taken:
                self._restore(one)
            return [self._alone(one) for one in taken]

    def _alone(self, one: RunningPass) -> PassResult | Exception:
        try:
            return self.passes.run([(self._slot(one), one.asked)])[0]
        except Exception as error:  # whatever one run's rows raise is that run's alone
            return error

    def _settle(self, one: RunningPass, result: PassResult | Exception) -> None:
        if isinstance(result, Exception):
            self._restore(one)
            one.future.set_exception(result)
            return
        one.run.has_gradient |= one.asked.backward
        one.future.set_result(result)

    def _restore(self, one: RunningPass) -> None:
        grad = self.moments.grads[one.run.index]
        grad.zero_() if one.before is None else grad.copy_(one.before)

    def _slot(self, one: RunningPass) -> int:
        assert one.run.index is not None
        return BASE_SLOT if one.asked.is_base else self.bank.slots[one.run.index]

    def _step(self, runs: Sequence[LiveRun]) -> None:
        """The step that each of them waits for, those with the same settings together."""
        norms = self.moments.norms().tolist()
        alike: dict[AdamSettings, list[tuple[LiveRun, OptimizerStep, Future[Result]]]] = {}
        for run in runs:
            asked, future = run.waiting.popleft()
            assert isinstance(asked, OptimizerStep)
            if not future.set_running_or_notify_cancel():
                continue
            if isfinite(norms[run.index or 0]):
                alike.setdefault(asked.settings, []).append((run, asked, future))
            else:
                self._drop_gradient(run, future)
        for settings, several in alike.items():
            self._steps_alike(settings, several, norms)

    def _steps_alike(
        self,
        settings: AdamSettings,
        several: Sequence[tuple[LiveRun, OptimizerStep, Future[Result]]],
        norms: Sequence[float],
    ) -> None:
        indices = [run.index or 0 for run, _, _ in several]
        clips = [
            1.0 if asked.max_norm is None else clip_factor(norms[i], asked.max_norm)
            for i, (_, asked, _) in zip(indices, several, strict=True)
        ]
        self.moments.step(self._groups, settings, indices, [asked.learning_rate for _, asked, _ in several], clips)
        for index, (run, _, future) in zip(indices, several, strict=True):
            run.has_gradient = False
            future.set_result(StepResult(self.moments.steps[index], norms[index]))

    def _drop_gradient(self, run: LiveRun, future: Future[Result]) -> None:
        self.moments.grads[run.index].zero_()
        run.has_gradient = False
        future.set_exception(NonFiniteError("the gradient is not finite: no step was made, and it is zero again"))

    def _answer_states(self, run: LiveRun) -> None:
        """What a run asks of its state before the next pass or step."""
        while run.next(TakeState, SetState):
            asked, future = run.waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._answer(run, asked))
            except Exception as error:  # such as a file that is damaged
                future.set_exception(error)


def _checked(result: PassResult | Exception, norm: float) -> PassResult | Exception:
    """The result, or the error that its numbers are."""
    if isinstance(result, Exception) or (isfinite(result.loss) and isfinite(norm)):
        return result
    what = f"loss is {result.loss}" if not isfinite(result.loss) else f"gradient is {norm}"
    return NonFiniteError(f"the {what}: this pass has no effect")
