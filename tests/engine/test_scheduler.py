"""Who runs next, and which tokens a step computes."""

import pytest
from tiny_serve import make_tokenizer

from polyvera.engine.generation.detokenizer import Text
from polyvera.engine.generation.request import GREEDY, Request
from polyvera.engine.generation.sampler import Choice
from polyvera.engine.scheduler import Row, Scheduler
from polyvera.errors import NotFoundError, PolyveraError
from polyvera.store.reference import AdapterRef

TOKENIZER = make_tokenizer()
HERE, LOADING, GONE = (AdapterRef(name, 1, "", 0) for name in ("here", "loading", "gone"))


def request(num: int = 3, tenant: str = "", adapter: AdapterRef | None = HERE) -> Request:
    return Request(list(range(num)), adapter, GREEDY, lambda output: None, tenant)


def start(asked: Request, place: int, slot: int) -> Row:
    return Row(asked, place, slot, Choice(GREEDY, asked.prompt, frozenset()), Text(TOKENIZER))


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
    scheduler = Scheduler(3, 10)
    asked = [request() for _ in range(5)]
    assert filled(scheduler, *asked) == asked[:3]
    assert [row.place for row in scheduler.running] == [0, 1, 2] and scheduler.num_waiting == 2
    scheduler.finish(scheduler.running[1])
    scheduler.finish(scheduler.running[0])
    admit(scheduler)
    assert [(row.place, row.request) for row in scheduler.running] == [(0, asked[3]), (1, asked[4]), (2, asked[2])]


def test_a_tenant_with_many_requests_does_not_keep_others_waiting() -> None:
    scheduler = Scheduler(4, 10)
    many, few = [request(tenant="many") for _ in range(9)], [request(tenant="few") for _ in range(2)]
    assert set(filled(scheduler, *many, *few)) == {*many[:2], *few}
    scheduler.finish(next(row for row in scheduler.running if row.request is few[0]))
    assert set(filled(scheduler)) == {*many[:3], few[1]}
    late = request(tenant="late")
    scheduler.add(late)
    scheduler.finish(next(row for row in scheduler.running if row.request is many[0]))
    assert late in filled(scheduler)


def test_a_request_whose_adapter_is_being_loaded_lets_others_pass() -> None:
    scheduler = Scheduler(2, 10)
    stuck, other = request(adapter=LOADING), [request(), request()]
    assert set(filled(scheduler, stuck, *other)) == set(other)
    assert list(scheduler.waiting()) == [stuck]


def test_a_request_whose_adapter_cannot_be_had_fails_alone() -> None:
    scheduler = Scheduler(2, 10)
    bad, good = request(adapter=GONE), request()
    scheduler.add(bad)
    scheduler.add(good)
    ((failed, error),) = admit(scheduler)
    assert failed is bad and isinstance(error, NotFoundError)
    assert [row.request for row in scheduler.running] == [good] and scheduler.num_waiting == 0


def test_rows_that_decode_go_first_and_prompts_share_what_a_step_reads() -> None:
    scheduler = Scheduler(4, 10)
    old, decoding, young = request(7), request(4), request(9)
    filled(scheduler, old, decoding, young)
    row = next(row for row in scheduler.running if row.request is decoding)
    row.num_computed, decoding.answer[:] = 4, [9]
    first, reading = scheduler.work()
    assert [(w.row.request, w.start, w.stop, w.is_last) for w in first] == [(decoding, 4, 5, True)]
    assert [(w.row.request, w.start, w.stop, w.is_last) for w in reading] == [(old, 0, 7, True), (young, 0, 3, False)]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_token_is_computed_once_and_in_order(chunk: int) -> None:
    scheduler = Scheduler(3, chunk)
    asked = [request(num) for num in (1, 8, 5)]
    filled(scheduler, *asked)
    seen: dict[int, list[int]] = {one.number: [] for one in asked}
    for _ in range(100):
        decoding, reading = scheduler.work()
        assert sum(work.stop - work.start for work in reading) <= chunk
        for work in (*decoding, *reading):
            seen[work.row.request.number] += range(work.start, work.stop)
            work.row.num_computed = work.stop
        if all(row.num_left == 0 for row in scheduler.running):
            break
    assert list(seen.values()) == [list(range(len(one.prompt))) for one in asked]


def test_a_row_gives_its_prompt_and_then_its_answer() -> None:
    row = start(request(4), 0, 1)
    row.request.answer[:] = [90, 91, 92]
    assert row.tokens(0, 4) == [0, 1, 2, 3] and row.tokens(2, 6) == [2, 3, 90, 91]
    assert row.tokens(5, 7) == [91, 92] and row.tokens(0, 0) == [] and row.num_left == 7


def test_waiting_requests_are_told_by_turns_and_can_be_dropped() -> None:
    scheduler = Scheduler(1, 10)
    a, b = [request(tenant="a") for _ in range(3)], [request(tenant="b")]
    for one in (*a, *b):
        scheduler.add(one)
    assert list(scheduler.waiting()) == [a[0], b[0], a[1], a[2]]
    scheduler.drop(a[1])
    scheduler.drop(b[0])
    assert list(scheduler.waiting()) == [a[0], a[2]] and scheduler.num_waiting == 2
