"""A tenant sees what it used, an operator what all did, and both still do after a restart."""

from pathlib import Path
from typing import Any

from tiny_server import GREEDY, Served, served

from polyvera.server.api_keys import KeyRates


def usage(at: Served, key: str | None, **query: str) -> list[dict[str, Any]]:
    answer = at.http(key).get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def ask(at: Served, key: str | None, model: str) -> int:
    given = {"model": model, "prompt": "the true thing", "ignore_eos": True, **GREEDY}
    return at.http(key).post("/v1/completions", json=given).status_code


def test_each_tenant_sees_its_own_and_all_of_it_after_a_restart(tmp_path: Path) -> None:
    with served(tmp_path, with_keys=True) as at:
        assert at.keys is not None
        acme, globex = (at.keys.add(name, [f"{name}/*"])[0] for name in ("acme", "globex"))
        operator, _ = at.keys.add("operator", ["*"])
        assert [ask(at, acme, "acme/one"), ask(at, acme, "acme/one@1"), ask(at, globex, "globex/secret")] == [200] * 3
        (own,) = usage(at, acme)
        assert (own["tenant"], own["adapter"], own["requests"], own["completion_tokens"]) == ("acme", "acme/one", 2, 16)
        assert own["total_tokens"] == own["prompt_tokens"] + 16
        assert [row["tenant"] for row in usage(at, operator, group_by="tenant")] == ["acme", "globex"]
    with served(tmp_path, with_keys=True) as at:
        ask(at, acme, "acme/two")
        assert {row["adapter"]: row["requests"] for row in usage(at, acme)} == {"acme/one": 2, "acme/two": 1}
        for wrong in ({"group_by": "secret"}, {"since": "x"}, {"limit": "0"}, {"limit": "x"}):
            assert at.http(acme).get("/v1/usage", params=wrong).status_code == 400


def test_an_open_server_counts_its_one_tenant(tmp_path: Path) -> None:
    with served(tmp_path) as at:
        ask(at, None, "base")
        assert [(row["tenant"], row["adapter"], row["requests"]) for row in usage(at, None)] == [("", "", 1)]


def test_a_key_that_has_used_its_requests_or_tokens_is_told_when_to_come_back(tmp_path: Path) -> None:
    with served(tmp_path, with_keys=True) as at:
        assert at.keys is not None
        few, _ = at.keys.add("acme", ["acme/*"], rates=KeyRates(requests_per_minute=2))
        assert [ask(at, few, "acme/one") for _ in range(3)] == [200, 200, 429]
        answer = at.http(few).post("/v1/completions", json={})
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert at.http(few).get("/v1/models").status_code == 200, "looking costs nothing"
        poor, _ = at.keys.add("acme", ["acme/*"], rates=KeyRates(tokens_per_day=10))
        assert [ask(at, poor, "acme/one") for _ in range(2)] == [200, 429]
        assert (
            at.http(poor).post("/v1/completions", json={"model": "acme/one", "prompt": "x"}).json()["error"]["code"]
            == "insufficient_quota"
        )
