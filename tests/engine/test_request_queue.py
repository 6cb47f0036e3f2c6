"""What other threads hand over arrives once, in order, and within bounds."""

from threading import Thread

import pytest

from polyvera.engine.request_queue import RequestQueue
from polyvera.errors import BusyError, ClosedError


def opened(max_waiting: int = 4) -> RequestQueue[int]:
    queue: RequestQueue[int] = RequestQueue(max_waiting)
    queue.is_open = True
    return queue


def test_requests_arrive_once_and_in_order() -> None:
    queue = opened()
    for request in (3, 1, 2):
        queue.add(request)
    assert queue.wake.is_set() and queue.num_waiting == queue.num_open == 3
    assert queue.arrived() == [3, 1, 2] and queue.arrived() == []
    queue.cancel(1)
    assert queue.cancelled() == [1] and queue.cancelled() == []


def test_who_waits_is_bounded_and_room_comes_back() -> None:
    queue = opened(2)
    queue.add(1)
    queue.add(2)
    with pytest.raises(BusyError, match="2 requests wait already"):
        queue.add(3)
    queue.left()
    queue.add(3)
    queue.ended()
    assert (queue.num_waiting, queue.num_open) == (2, 2) and queue.arrived() == [1, 2, 3]


def test_a_closed_queue_takes_nothing() -> None:
    queue: RequestQueue[int] = RequestQueue(2)
    for _ in range(2):
        with pytest.raises(ClosedError):
            queue.add(1)
        with pytest.raises(ClosedError):
            queue.do(lambda: None)
        queue.is_open = True
        queue.close()
    assert queue.num_waiting == queue.num_open == 0


def test_a_job_is_called_until_it_is_done() -> None:
    queue, calls = opened(), []

    def twice() -> bool:
        calls.append("twice")
        return calls.count("twice") == 2

    queue.do(twice)
    queue.do(lambda: calls.append("once"))
    for _ in range(4):
        queue.do_jobs()
    assert calls == ["twice", "once", "twice"]


def test_no_request_of_many_threads_is_lost() -> None:
    queue = opened(1000)
    threads = [Thread(target=lambda i=i: [queue.add(100 * i + j) for j in range(100)]) for i in range(8)]
    for thread in threads:
        thread.start()
    found: list[int] = []
    while len(found) < 800:
        found += queue.arrived()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(800)) and queue.num_waiting == 800
