"""Answers wait for their tenant's turn, and are refused only where too many of its own wait."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from polyvera.errors import BusyError
from polyvera.server.admission import MAX_RETRY_S, Admission
from polyvera.server.api_keys import Caller


def caller(tenant: str, weight: float = 1.0) -> Caller:
    return Caller(tenant, ("*",), base=True, admin=False, weight=weight)


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 30))  # type: ignore[arg-type]


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_fits_goes_at_once_and_what_does_not_waits_for_room() -> None:
    async def go() -> None:
        admission, order = Admission(2), []

        async def ask(name: str, num: int) -> None:
            async with admission.place(caller("a"), num):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*(ask(f"{i}", 1) for i in range(40)), ask("two", 2))
        assert order == [*map(str, range(40)), "two"]
        assert not admission._tenants and admission._num == 0

    run(go)


def test_a_line_that_is_full_refuses_its_own_tenant_alone() -> None:
    async def go() -> None:
        admission = Admission(1, max_waiting=2)
        await admission.admit(caller("a"), 1)
        waiting = [asyncio.create_task(admission.admit(caller("a"), 1)) for _ in range(2)]
        await settle()
        with pytest.raises(BusyError, match="1 answers are under way .* 3 would wait, of at most 2") as caught:
            await admission.admit(caller("a"), 1)
        assert 1 <= caught.value.retry_s <= MAX_RETRY_S and admission.num_waiting == 2
        await admission.admit(caller("b"), 1)
        for _ in waiting:
            admission.leave(caller("a"), 1)
            await settle()
        assert all(task.done() for task in waiting)
        with pytest.raises(BusyError, match="2 answers are more than the 1"):
            await admission.admit(caller("c"), 2)
        assert set(admission._tenants) == {"a", "b"}

    run(go)


@pytest.mark.parametrize(("weight", "shares"), [(1.0, (5, 5)), (4.0, (8, 2))])
def test_tenants_share_what_there_is_by_their_weights(weight: float, shares: tuple[int, int]) -> None:
    async def go() -> None:
        admission, heavy, light = Admission(10, max_total=10), caller("heavy", weight), caller("light")
        await admission.admit(light, 10)
        for who in (light, heavy):
            for _ in range(50):
                asyncio.get_running_loop().create_task(admission.admit(who, 1))
        await settle()
        admission.leave(light, 10)
        await settle()
        assert (admission._tenants["heavy"].num, admission._tenants["light"].num) == shares
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    run(go)


def test_a_large_request_is_not_passed_for_ever() -> None:
    async def go() -> None:
        admission, ended = Admission(4, max_total=4), []
        await admission.admit(caller("small"), 3)

        async def ask(who: str, num: int) -> None:
            async with admission.place(caller(who), num):
                ended.append(who)

        tasks = [asyncio.create_task(ask("large", 4)), asyncio.create_task(ask("small", 1))]
        await settle()
        assert ended == []
        admission.leave(caller("small"), 3)
        await asyncio.gather(*tasks)
        assert ended == ["large", "small"]

    run(go)


def test_who_goes_while_waiting_takes_no_place() -> None:
    async def go() -> None:
        admission = Admission(1)
        await admission.admit(caller("a"), 1)
        first, second = (asyncio.create_task(admission.admit(caller("a"), 1)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        admission.leave(caller("a"), 1)
        await second
        late = asyncio.create_task(admission.admit(caller("a"), 1))
        await settle()
        admission.leave(caller("a"), 1)  # it is its turn, and it is cancelled before it knows
        late.cancel()
        await settle()
        assert not admission._tenants and admission._num == 0

    run(go)


def test_when_to_come_back_is_told_by_how_fast_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        now = [100.0]
        monkeypatch.setattr("polyvera.server.admission.monotonic", lambda: now[0])
        admission = Admission(1, max_waiting=1)
        for _ in range(4):
            await admission.admit(caller("a"), 1)
            now[0] += 8.0
            admission.leave(caller("a"), 1)
        await admission.admit(caller("a"), 1)
        task = asyncio.create_task(admission.admit(caller("a"), 1))
        await settle()
        with pytest.raises(BusyError) as caught:
            await admission.admit(caller("a"), 1)
        assert caught.value.retry_s == 6.0, "four ended in 24 s"
        task.cancel()

    run(go)
