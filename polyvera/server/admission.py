"""Admission: how many answers are under way, of each tenant and in all; those beyond wait in a line of their tenant."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from polyvera.errors import BusyError
from polyvera.server.api_keys import Caller

NUM_PACED = 64  # the latest ends that tell how fast answers end
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


@dataclass(eq=False, slots=True)
class WaitingAnswers:
    """Answers of one request that wait for their turn."""

    num: int
    turn: asyncio.Future[None]
    since: float = field(default_factory=monotonic)


@dataclass(eq=False, slots=True)
class TenantAnswers:
    """One tenant's answers. num: under way. line: those that wait."""

    weight: float = 1.0
    num: int = 0
    line: deque[WaitingAnswers] = field(default_factory=deque)

    @property
    def num_waiting(self) -> int:
        """Answers that wait."""
        return sum(one.num for one in self.line)


class Admission:
    """Of the event loop's thread. The tenant with the fewest answers for its weight is next, then who waits longest.

    max_per_tenant: answers under way of one tenant. max_waiting: answers of one tenant that wait; beyond: BusyError.
    max_total: answers under way in all.
    """

    def __init__(self, max_per_tenant: int, max_waiting: int = 1024, max_total: int = 1024) -> None:
        self._max_per_tenant, self._max_waiting = max_per_tenant, max_waiting
        self._max_total = max(max_total, max_per_tenant)
        self._tenants: dict[str, TenantAnswers] = {}
        self._num = 0
        self._ends: deque[tuple[float, int]] = deque(maxlen=NUM_PACED)

    @property
    def num_waiting(self) -> int:
        """Answers that wait, of all tenants."""
        return sum(tenant.num_waiting for tenant in self._tenants.values())

    @asynccontextmanager
    async def place(self, caller: Caller, num: int) -> AsyncIterator[None]:
        """Counts so many answers as under way for the time of the context. Waits and raises as admit()."""
        await self.admit(caller, num)
        try:
            yield
        finally:
            self.leave(caller, num)

    async def admit(self, caller: Caller, num: int) -> None:
        """Counts so many answers as under way until leave(), when it is the tenant's turn. Raises BusyError."""
        if num > self._max_per_tenant:
            raise BusyError(f"{num} answers are more than the {self._max_per_tenant} of one tenant at a time")
        tenant = self._tenants.setdefault(caller.tenant, TenantAnswers())
        tenant.weight = caller.weight
        waiting = WaitingAnswers(num, asyncio.get_running_loop().create_future())
        tenant.line.append(waiting)
        self._fill()
        try:
            self._check(tenant)
            await waiting.turn
        except BaseException:
            if waiting in tenant.line:
                tenant.line.remove(waiting)
                self._forget(caller.tenant)
                self._fill()  # those behind it may need less
            else:
                self.leave(caller, num)
            raise

    def leave(self, caller: Caller, num: int) -> None:
        """So many answers have ended."""
        self._tenants[caller.tenant].num -= num
        self._num -= num
        self._ends.append((monotonic(), num))
        self._forget(caller.tenant)
        self._fill()

    def _check(self, tenant: TenantAnswers) -> None:
        if tenant.num_waiting > self._max_waiting:
            raise BusyError(
                f"{tenant.num} answers are under way for this tenant, and with this request {tenant.num_waiting} would "
                f"wait, of at most {self._max_waiting}: try again later",
                self._retry_s(tenant),
            )

    def _retry_s(self, tenant: TenantAnswers) -> float:
        """When there may be room in the tenant's line, by how fast answers have ended and its share of them."""
        if not self._ends:
            return MIN_RETRY_S
        num_ended = sum(num for _, num in self._ends)
        answer_s = (monotonic() - self._ends[0][0]) / num_ended
        weights = sum(one.weight for one in self._tenants.values() if one.line)
        needed = tenant.num_waiting - self._max_waiting
        return min(max(needed * answer_s * weights / tenant.weight, MIN_RETRY_S), MAX_RETRY_S)

    def _fill(self) -> None:
        """Admits those whose turn it is while there is room."""
        while (tenant := self._next()) is not None and self._num + tenant.line[0].num <= self._max_total:
            waiting = tenant.line.popleft()
            tenant.num += waiting.num
            self._num += waiting.num
            if not waiting.turn.done():
                waiting.turn.set_result(None)

    def _next(self) -> TenantAnswers | None:
        """The tenant whose turn it is; one that needs more than the room that is left lets nobody pass."""
        within = [
            tenant
            for tenant in self._tenants.values()
            if tenant.line and tenant.num + tenant.line[0].num <= self._max_per_tenant
        ]
        return min(within, key=lambda one: (one.num / one.weight, one.line[0].since), default=None)

    def _forget(self, name: str) -> None:
        tenant = self._tenants[name]
        if not (tenant.num or tenant.line):
            del self._tenants[name]
