"""Each tenant has a share of the threads, and a line of its own before them."""

import asyncio
from threading import Event

import pytest
from tiny_serve import LONGEST_WAIT

from polyvera.errors import BusyError
from polyvera.server import tenant_pool
from polyvera.server.tenant_pool import MAX_WAITING, SHARE, TenantPool


def test_what_is_done_is_given_back_and_what_it_raises_too() -> None:
    async def ask() -> None:
        pool = TenantPool()
        assert await pool.run("a", lambda x, *, y: x + y, 1, y=2) == 3
        with pytest.raises(ZeroDivisionError):
            await pool.run("a", lambda: 1 // 0)
        await asyncio.sleep(0.05)
        assert not pool._lines, "nothing is kept of a tenant that asks nothing"
        pool.close()

    asyncio.run(ask())


def test_one_tenant_leaves_threads_to_the_others() -> None:
    async def ask() -> None:
        pool, free = TenantPool(), Event()
        begun: list[int] = []
        hostile = [
            asyncio.create_task(pool.run("a", lambda i=i: (begun.append(i), free.wait(LONGEST_WAIT))))
            for i in range(99)
        ]
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(pool.run("b", lambda: "answered"), LONGEST_WAIT) == "answered"
        assert len(begun) == SHARE
        hostile[-1].cancel()  # its client has gone
        free.set()
        ended = await asyncio.gather(*hostile, return_exceptions=True)
        assert isinstance(ended[-1], asyncio.CancelledError) and len(begun) == 98
        pool.close()

    asyncio.run(ask())


def test_a_work_that_runs_keeps_its_turn_though_its_client_has_gone() -> None:
    async def ask() -> None:
        pool, free = TenantPool(), Event()
        running = [asyncio.create_task(pool.run("a", free.wait, LONGEST_WAIT)) for _ in range(SHARE)]
        await asyncio.sleep(0.1)
        for one in running:
            one.cancel()
        late = asyncio.create_task(pool.run("a", lambda: "late"))
        await asyncio.sleep(0.1)
        assert not late.done()
        free.set()
        assert await asyncio.wait_for(late, LONGEST_WAIT) == "late"
        pool.close()

    asyncio.run(ask())


def test_a_line_that_is_too_long_or_does_not_move_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_pool, "WAIT_S", 0.2)

    async def ask() -> None:
        pool, free = TenantPool(), Event()
        asked = [asyncio.create_task(pool.run("a", free.wait, LONGEST_WAIT)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="wait to be read"):
            await pool.run("a", lambda: None)
        assert await pool.run("b", lambda: 1) == 1
        ended = await asyncio.gather(*asked[SHARE:], return_exceptions=True)
        assert {type(one) for one in ended} == {BusyError}
        free.set()
        await asyncio.gather(*asked[:SHARE])
        pool.close()

    asyncio.run(ask())
