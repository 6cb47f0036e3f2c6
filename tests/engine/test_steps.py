"""A step is schedule, forward, sample, commit, for any workload."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from tiny_serve import make_llama

from polyvera.adapter.packed_linear import Packs
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.engine.steps import MAX_FAILURES, EngineCore
from polyvera.errors import EngineError, PolyveraError

numbers = count(1)


@dataclass(eq=False)
class Sum:
    """A request: it wants the sum of its digits, which is added one a step."""

    digits: list[int]
    adapter: None = None
    tenant: str = ""
    weight: float = 1.0
    admitted: float = 0.0
    number: int = field(default_factory=lambda: next(numbers))
    total: int = 0
    ends: list[PolyveraError | str | None] = field(default_factory=list)

    @property
    def whole(self) -> "Sum":
        return self

    @property
    def num_tokens(self) -> int:
        return len(self.digits)


@dataclass(eq=False)
class Digit:
    """A row of a Sum."""

    request: Sum
    index: int


class Sums:
    """A workload whose forward adds; fails: how many of its next forwards raise."""

    def __init__(self, queue: RequestQueue[Sum], max_rows: int) -> None:
        self.scheduler: Scheduler[Sum, Digit] = Scheduler(max_rows)
        self.totals = {"steps": 0}
        self.log: list[str] = []
        self.fails = 0
        self._queue = queue

    def parts(self, request: Sum) -> list[Sum]:
        return [request]

    def acquire(self, part: Sum) -> int | None:
        return 0

    def start(self, part: Sum, index: int, slot: int) -> Digit:
        self._queue.left()
        return Digit(part, index)

    def batches(self, most: int | None) -> Iterator[list[Digit]]:
        if self.scheduler.running:
            self.log.append("schedule")
            yield list(self.scheduler.running)

    def size(self, batch: list[Digit]) -> int:
        return len(batch)

    def rows(self, batch: list[Digit]) -> Iterable[Digit]:
        return batch

    def forward(self, batch: list[Digit]) -> list[int]:
        self.log.append("forward")
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault")
        self.totals["steps"] += 1
        return [row.request.digits[0] for row in batch]

    def sample(self, batch: list[Digit], output: list[int]) -> list[int]:
        self.log.append("sample")
        return [row.request.total + digit for row, digit in zip(batch, output, strict=True)]

    def commit(self, batch: list[Digit], samples: list[int]) -> None:
        self.log.append("commit")
        for row, total in zip(batch, samples, strict=True):
            row.request.total = total
            row.request.digits.pop(0)
            if not row.request.digits:
                self._end(row.request, "done")

    def end(self, request: Sum, error: PolyveraError | None) -> None:
        if not request.ends:
            self._end(request, error)

    def _end(self, request: Sum, end: PolyveraError | str | None) -> None:
        request.ends.append(end)
        row = next((row for row in self.scheduler.running if row.request is request), None)
        if row is None:
            self.scheduler.drop(request)
            self._queue.left()
        else:
            self.scheduler.finish(row)
        self._queue.ended()


@pytest.fixture
def parts() -> Iterator[tuple[EngineCore, Sums, RequestQueue[Any], list[str]]]:
    queue, seen, limits = RequestQueue[Any](100), [], Limits(max_rows=2)
    queue.is_open = True
    adapters = AdapterCache(
        make_llama(),
        None,
        num_slots=1,
        slot_bytes=1,
        host_bytes=1,
        packs=Packs(),
        check=lambda ref, adapter: (),
        observe=lambda name, seconds: None,
        wake=queue.wake.set,
    )
    work = Sums(queue, limits.max_rows)
    yield EngineCore(work, adapters, queue, limits, lambda name, seconds: seen.append(name)), work, queue, seen
    adapters.close()


def test_a_step_is_a_sentence(parts: Any) -> None:
    core, work, queue, seen = parts
    assert not core.step() and work.log == [] and seen == [] and not core.is_busy
    request = Sum([1, 2])
    queue.add(request)
    assert core.is_busy and core.step() and work.log == ["schedule", "forward", "sample", "commit"]
    running = core.stats()
    assert running.running[0].num_tokens == 1 and running.totals["steps"] == 1 and seen == ["step_s"]
    assert core.step() and request.total == 3 and request.ends == ["done"] and not core.is_busy
    assert core.stats().running == () and not core.step()


def test_rows_are_filled_and_who_waits_comes_in(parts: Any) -> None:
    core, work, queue, _ = parts
    asked = [Sum([1] * num) for num in (1, 3, 2, 1)]
    for request in asked:
        queue.add(request)
    running = []
    while core.step():
        running.append(len(work.scheduler.running))
    assert [request.total for request in asked] == [1, 3, 2, 1] and max(running) <= 2 and queue.num_open == 0


def test_a_cancelled_request_ends_wherever_it_is(parts: Any) -> None:
    core, _, queue, _ = parts
    asked = [Sum([1] * 9) for _ in range(4)]
    for request in asked:
        queue.add(request)
    core.step()
    for request in (asked[0], asked[3], asked[3]):
        queue.cancel(request)
    core.step()
    assert [request.ends for request in asked] == [[None], [], [], [None]] and asked[2].total == 1


def test_a_batch_that_fails_ends_its_own_rows_and_several_end_the_engine(parts: Any) -> None:
    core, work, queue, _ = parts
    asked = [Sum([1, 1]) for _ in range(3)]
    for request in asked:
        queue.add(request)
    work.fails = 1
    core.step()
    assert [type(end) for request in asked[:2] for end in request.ends] == [EngineError] * 2 and not asked[2].ends
    while core.step():
        pass
    assert asked[2].ends == ["done"] and asked[2].total == 2
    work.fails = MAX_FAILURES
    for request in (Sum([1]) for _ in range(2 * MAX_FAILURES)):
        queue.add(request)
    with pytest.raises(RuntimeError):
        for _ in range(MAX_FAILURES):
            core.step()


def test_all_ends_those_that_have_just_come_too(parts: Any) -> None:
    core, _, queue, _ = parts
    asked, error = [Sum([1] * 9) for _ in range(5)], EngineError("the end")
    for request in asked[:4]:
        queue.add(request)
    core.step()
    queue.add(asked[4])
    done: list[int] = []
    queue.do(lambda: done.append(1))
    core.end_all(error)
    assert all(request.ends == [error] for request in asked) and done and not core.is_busy
