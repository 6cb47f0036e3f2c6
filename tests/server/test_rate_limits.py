"""A minute's allowance fills evenly, a day's ends at midnight, and what is under way is counted before it is spent."""

import pytest

from polyvera.errors import BusyError, QuotaError
from polyvera.server.api_keys import EVERYONE, Caller, KeyRates
from polyvera.server.rate_limits import Bucket, RateLimits, duration


def caller(**rates: int) -> Caller:
    return Caller("acme", ("acme/*",), base=False, admin=False, key="k", rates=KeyRates(**rates))


def test_a_bucket_fills_evenly_and_can_be_overdrawn() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.spend(60)
    assert bucket.left() == 0 and bucket.reset_s(1) == 1 and bucket.reset_s(60) == 60
    now[0] = 30.0
    assert bucket.left() == 30 and bucket.reset_s(30) == 0
    bucket.spend(90)
    assert bucket.left() == -60 and bucket.reset_s(1) == 61
    now[0] = 10_000.0
    assert bucket.left() == 60 and bucket.reset_s(10**9) == 0


def test_requests_a_minute_are_counted_but_those_that_only_look() -> None:
    limits, asked = RateLimits(), caller(requests_per_minute=2)
    for method in ("POST", "GET", "HEAD", "OPTIONS", "PUT"):
        limits.count_request(asked, method)
    with pytest.raises(BusyError, match="its 2 requests a minute") as caught:
        limits.count_request(asked, "POST")
    assert 25 < caught.value.retry_s <= 30
    limits.count_request(asked, "GET")
    limits.count_request(EVERYONE, "POST")
    assert limits.headers(asked)["x-ratelimit-remaining-requests"] == "0"


def test_tokens_are_kept_while_a_request_runs_and_then_counted_as_spent() -> None:
    limits, asked = RateLimits(), caller(tokens_per_minute=1000)
    with limits.reserve(asked, 700) as first:
        assert limits.headers(asked)["x-ratelimit-remaining-tokens"] == "300"
        with (
            pytest.raises(BusyError, match="may need 400 tokens, and of the 1,000 .* 700 of them for requests under"),
            limits.reserve(asked, 400),
        ):
            pass
        with limits.reserve(asked, 300):
            pass
        first.num_spent = 100
    assert limits.headers(asked)["x-ratelimit-remaining-tokens"] == "900"
    with limits.reserve(asked, 5_000) as alone:  # more than there ever is, and nothing else is under way
        alone.num_spent = 2_000
    with pytest.raises(BusyError) as caught, limits.reserve(asked, 1):
        pass
    assert 60 < caught.value.retry_s < 70, "1,100 tokens too many, and one more"


def test_a_days_budget_counts_what_was_used_before_this_server_started() -> None:
    used = {"k": 900}
    limits, asked = RateLimits(lambda key: used[key]), caller(tokens_per_day=1000)
    with limits.reserve(asked, 50) as one:
        one.num_spent = 50
        used["k"] += 50
    assert limits.headers(asked)["x-ratelimit-remaining-tokens-day"] == "50"
    used["k"] = 1000
    with pytest.raises(QuotaError, match="its 1,000 tokens of today") as caught, limits.reserve(asked, 1):
        pass
    assert 0 < caught.value.retry_s <= 86_400


def test_headers_have_openais_names_and_a_key_without_bounds_has_none() -> None:
    limits = RateLimits()
    assert limits.headers(EVERYONE) == {}
    found = limits.headers(caller(requests_per_minute=60, tokens_per_minute=5))
    kinds = ("requests", "tokens")
    assert set(found) == {f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in kinds}
    assert found["x-ratelimit-reset-requests"] == "0ms" and found["x-ratelimit-limit-tokens"] == "5"


def test_a_bound_that_was_changed_holds_at_once() -> None:
    limits = RateLimits()
    limits.count_request(caller(requests_per_minute=1), "POST")
    limits.count_request(caller(requests_per_minute=2), "POST")
    with pytest.raises(BusyError):
        limits.count_request(caller(requests_per_minute=1), "POST")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (1.5, "1.5s"), (60, "1m0s"), (366, "6m6s"), (86_341, "23h59m1s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
