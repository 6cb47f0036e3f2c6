"""RateLimits: how many requests and tokens each key may still use, a minute and a day."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import floor
from time import monotonic
from typing import Protocol

from polyvera.errors import BusyError, QuotaError
from polyvera.server.api_keys import Caller

MINUTE_S = 60.0
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Allowance(Protocol):
    """So much in a time. size: of it. reserved: for what is under way."""

    size: int
    reserved: int

    def left(self) -> float:
        """What is not used; below 0 where more was used."""

    def reset_s(self, amount: float) -> float:
        """Seconds until so much is left."""

    def spend(self, num: int) -> None:
        """Counts it as used."""


class Bucket:
    """A minute's amount, which fills evenly. It can be overdrawn, and then takes longer."""

    def __init__(self, size: int, clock: Callable[[], float] = monotonic) -> None:
        self.size, self.reserved = size, 0
        self._clock, self._at, self._level = clock, clock(), float(size)

    def left(self) -> float:
        """What is not used at this moment."""
        now = self._clock()
        self._level = min(float(self.size), self._level + (now - self._at) * self.size / MINUTE_S)
        self._at = now
        return self._level

    def reset_s(self, amount: float) -> float:
        """Seconds until so much is left, at most all of it."""
        return max(0.0, (min(amount, self.size) - self.left()) * MINUTE_S / self.size)

    def spend(self, num: int) -> None:
        """Takes it out."""
        self._level = self.left() - num


class DayBudget:
    """A day's amount, from midnight to midnight in UTC. used: what was used today, whoever counted it."""

    def __init__(self, size: int, used: Callable[[], int]) -> None:
        self.size, self.reserved, self._used = size, 0, used

    def left(self) -> float:
        """What is not used today."""
        return self.size - self._used()

    def reset_s(self, amount: float) -> float:
        """Seconds until midnight, 0 where so much is left."""
        now = datetime.now(UTC)
        midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
        return 0.0 if self.left() >= amount else (midnight - now).total_seconds()

    def spend(self, num: int) -> None:
        """Nothing: it is counted by the accounts of usage."""


@dataclass(slots=True)
class Reservation:
    """Tokens kept for one request. num_spent: of them, known at its end."""

    num_spent: int = 0


class RateLimits:
    """The allowances of every key. Of the event loop's thread.

    tokens_today: the tokens that a key, by its id, has used today.
    """

    def __init__(self, tokens_today: Callable[[str], int] = lambda key: 0) -> None:
        self._tokens_today = tokens_today
        self._allowances: dict[tuple[str, str, int], Allowance] = {}

    def count_request(self, caller: Caller, method: str) -> None:
        """Counts a request that may cost something. Raises BusyError where the key has none left this minute."""
        bucket = self._of(caller).get("requests")
        if bucket is None or method in SAFE_METHODS:
            return
        if bucket.left() < 1:
            raise BusyError(
                f"this API key has used its {bucket.size} requests a minute: try again later", bucket.reset_s(1)
            )
        bucket.spend(1)

    @contextmanager
    def reserve(self, caller: Caller, num_tokens: int) -> Iterator[Reservation]:
        """Keeps tokens for one request while the context lasts, and then counts those that it spent.

        One that may need more than is left passes while no other is under way. Raises BusyError, QuotaError.
        """
        allowances = {kind: one for kind, one in self._of(caller).items() if kind != "requests"}
        for kind, one in allowances.items():
            _check(kind, one, num_tokens)
        reservation = Reservation()
        with ExitStack() as stack:
            for one in allowances.values():
                stack.enter_context(_reserved(one, num_tokens, reservation))
            yield reservation

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """What is left of the key's allowances, in OpenAI's names; those of a day end in -tokens-day."""
        found: dict[str, str] = {}
        for kind, one in self._of(caller).items():
            found[f"x-ratelimit-limit-{kind}"] = str(one.size)
            found[f"x-ratelimit-remaining-{kind}"] = str(max(0, floor(one.left() - one.reserved)))
            found[f"x-ratelimit-reset-{kind}"] = duration(one.reset_s(one.size))
        return found

    def _of(self, caller: Caller) -> dict[str, Allowance]:
        """The key's allowances by kind; a bound that was changed in the file begins anew."""
        rates, key = caller.rates, caller.key
        made: dict[str, tuple[int | None, Callable[[int], Allowance]]] = {
            "requests": (rates.requests_per_minute, Bucket),
            "tokens": (rates.tokens_per_minute, Bucket),
            "tokens-day": (rates.tokens_per_day, lambda size: DayBudget(size, lambda: self._tokens_today(key))),
        }
        found: dict[str, Allowance] = {}
        for kind, (size, make) in made.items():
            if size is not None:
                if (key, kind, size) not in self._allowances:
                    self._allowances[key, kind, size] = make(size)
                found[kind] = self._allowances[key, kind, size]
        return found


def _check(kind: str, one: Allowance, num_tokens: int) -> None:
    left = one.left()
    if left - one.reserved >= num_tokens or (left >= 1 and not one.reserved):
        return
    if kind == "tokens-day" and left < 1:
        raise QuotaError(f"this API key has used its {one.size:,} tokens of today (UTC)", one.reset_s(1))
    raise BusyError(
        f"this request may need {num_tokens:,} tokens, and of the {one.size:,} of this API key {max(0, floor(left)):,} "
        f"are left, {one.reserved:,} of them for requests under way: try again later",
        max(1.0, one.reset_s(num_tokens + one.reserved) if kind == "tokens" else 1.0),
    )


@contextmanager
def _reserved(one: Allowance, num: int, reservation: Reservation) -> Iterator[None]:
    one.reserved += num
    try:
        yield
    finally:
        one.reserved -= num
        one.spend(reservation.num_spent)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.5s, 6m0s, 23h59m1s."""
    if seconds < 1:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes}m{int(rest)}s"
    return f"{minutes}m{int(rest)}s" if minutes else f"{rest:.3g}s"
