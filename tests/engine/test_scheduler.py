"""Who runs next."""

import pytest
from tiny_serve import make_tokenizer

from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.request import GREEDY, Request
from polyvera.engine.generation.rows import Row
from polyvera.engine.generation.sampler import RequestSampler
from polyvera.engine.scheduler import RECENT_S, SPARE, Scheduler
from polyvera.errors import NotFoundError, PolyveraError
from polyvera.store.reference import AdapterRef

TOKENIZER = make_tokenizer()
HERE, LOADING, GONE = (AdapterRef(name, 1, "", 0) for name in ("here", "loading", "gone"))


def request(num: int = 3, tenant: str = "", adapter: AdapterRef | None = HERE) -> Request:
    return Request(list(range(num)), adapter, GREEDY, lambda output: None, tenant)


def start(asked: Request, index: int, slot: int) -> Row:
    return Row(asked, index, slot, RequestSampler(GREEDY, asked.prompt, frozenset()), Detokenizer(TOKENIZER))


def acquire(asked: Request) -> int | None:
    if asked.adapter is GONE:
        raise NotFoundError("gone")
    return None if asked.adapter is LOADING else 1


def admit(scheduler: Scheduler) -> list[tuple[Request, PolyveraError]]:
    return scheduler.admit(acquire, start)


def filled(scheduler: Scheduler, *asked: Request) -> list[Request]:
    """The requests that run once these have come, in the order in which they were admitted."""
    for one in asked:
        scheduler.add(one)
    admit(scheduler)
    return [row.request for row in sorted(scheduler.running, key=lambda row: row.request.admitted)]


def test_requests_run_in_the_order_of_their_arrival_in_the_lowest_places() -> None:
    scheduler = Scheduler(3)
    asked = [request() for _ in range(5)]
    assert filled(scheduler, *asked) == asked[:3]
    assert [row.index for row in scheduler.running] == [0, 1, 2] and scheduler.num_waiting == 2
    scheduler.finish(scheduler.running[1])
    scheduler.finish(scheduler.running[0])
    admit(scheduler)
    assert [(row.index, row.request) for row in scheduler.running] == [(0, asked[3]), (1, asked[4]), (2, asked[2])]


def test_a_tenant_with_many_requests_does_not_keep_others_waiting() -> None:
    scheduler = Scheduler(4)
    many, few = [request(tenant="many") for _ in range(9)], [request(tenant="few") for _ in range(2)]
    assert set(filled(scheduler, *many, *few)) == {*many[:2], *few}
    scheduler.finish(next(row for row in scheduler.running if row.request is few[0]))
    assert set(filled(scheduler)) == {*many[:3], few[1]}
    late = request(tenant="late")
    scheduler.add(late)
    scheduler.finish(next(row for row in scheduler.running if row.request is many[0]))
    assert late in filled(scheduler)


def test_rows_are_shared_by_weight() -> None:
    scheduler = Scheduler(8)
    heavy, light = [request(tenant="heavy") for _ in range(9)], [request(tenant="light") for _ in range(9)]
    for one in heavy:
        one.weight = 3.0
    assert set(filled(scheduler, *light, *heavy)) == {*heavy[:6], *light[:2]}


def test_a_row_is_kept_for_a_tenant_that_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("polyvera.engine.scheduler.monotonic", lambda: now[0])
    scheduler = Scheduler(SPARE)
    (asked,) = filled(scheduler, request(tenant="few"))
    scheduler.finish(next(row for row in scheduler.running if row.request is asked))
    assert len(filled(scheduler, *(request(tenant="many") for _ in range(2 * SPARE)))) == SPARE - 1
    again = request(tenant="few")
    assert again in filled(scheduler, again) and len(scheduler.running) == SPARE
    scheduler.finish(next(row for row in scheduler.running if row.request is again))
    assert len(filled(scheduler)) == SPARE - 1
    now[0] += RECENT_S + 1
    assert len(filled(scheduler)) == SPARE, "it has been gone for long"


def test_a_step_starts_so_many_rows_of_a_tenant_at_most() -> None:
    scheduler = Scheduler(8)
    assert not scheduler.is_shared
    many, few = [request(tenant="many") for _ in range(9)], request(tenant="few")
    for one in (*many, few):
        scheduler.add(one)
    assert scheduler.is_shared
    scheduler.admit(acquire, start, 2)
    assert {row.request for row in scheduler.running} == {*many[:2], few}
    admit(scheduler)
    assert len(scheduler.running) == 8


def test_one_tenant_alone_has_every_row() -> None:
    scheduler = Scheduler(SPARE)
    assert len(filled(scheduler, *(request() for _ in range(2 * SPARE)))) == SPARE


def test_a_request_whose_adapter_is_being_loaded_lets_others_pass() -> None:
    scheduler = Scheduler(2)
    stuck, other = request(adapter=LOADING), [request(), request()]
    assert set(filled(scheduler, stuck, *other)) == set(other)
    assert list(scheduler.waiting()) == [stuck]


def test_a_request_whose_adapter_cannot_be_had_fails_alone() -> None:
    scheduler = Scheduler(2)
    bad, good = request(adapter=GONE), request()
    scheduler.add(bad)
    scheduler.add(good)
    ((failed, error),) = admit(scheduler)
    assert failed is bad and isinstance(error, NotFoundError)
    assert [row.request for row in scheduler.running] == [good] and scheduler.num_waiting == 0


def test_waiting_requests_are_told_by_turns_and_can_be_dropped() -> None:
    scheduler = Scheduler(1)
    a, b = [request(tenant="a") for _ in range(3)], [request(tenant="b")]
    for one in (*a, *b):
        scheduler.add(one)
    assert list(scheduler.waiting()) == [a[0], b[0], a[1], a[2]] and set(scheduler.snapshot()) == {*a, *b}
    scheduler.drop(a[1])
    scheduler.drop(b[0])
    assert list(scheduler.waiting()) == [a[0], a[2]] and scheduler.num_waiting == 2
