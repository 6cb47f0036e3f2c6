"""What tenants use is counted, and a new server goes on from there."""

from datetime import date
from pathlib import Path
from threading import Thread

import pytest

from polyvera.errors import ServeError
from polyvera.server.usage import KEPT_DAYS, UsageQuery, UsageStore, open_usage, parse_day, parse_groups, usage_path

DAY = date(2026, 11, 27)


def filled(path: Path | None = None, day: date = DAY) -> UsageStore:
    usage = UsageStore(path, lambda: day)
    usage.add("acme", "k1", "acme/one", 10, 5)
    usage.add("acme", "k2", "acme/two", 1, 1)
    usage.add("globex", "k3", "", 100, 50)
    return usage


@pytest.mark.parametrize("is_file", [True, False])
def test_rows_are_summed_by_group(tmp_path: Path, is_file: bool) -> None:
    usage = filled(tmp_path / "usage.sqlite" if is_file else None)
    usage.add("acme", "k1", "acme/one", 10, 5)
    assert usage.rows(UsageQuery("acme")) == [
        {
            "day": "2026-11-27",
            "tenant": "acme",
            "adapter": name,
            "requests": num,
            "prompt_tokens": p,
            "completion_tokens": c,
        }
        for name, num, p, c in (("acme/one", 2, 20, 10), ("acme/two", 1, 1, 1))
    ]
    by_tenant = usage.rows(UsageQuery(None, groups=("tenant",)))
    assert [(row["tenant"], row["requests"], row["prompt_tokens"]) for row in by_tenant] == [
        ("acme", 3, 21),
        ("globex", 1, 100),
    ]
    assert usage.rows(UsageQuery(None, since=date(2026, 11, 28))) == []
    assert len(usage.rows(UsageQuery(None, limit=2))) == 2
    usage.close()


def test_counts_outlive_the_server_and_old_days_go(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    filled(path, date(2020, 1, 1)).close()
    filled(path).close()
    again = filled(path)
    assert again.tokens_today("k1") == 30 and again.tokens_today("k9") == 0
    assert [row["requests"] for row in again.rows(UsageQuery("globex"))] == [2]
    assert (DAY - date(2020, 1, 1)).days > KEPT_DAYS


def test_a_new_day_begins_with_nothing() -> None:
    days = [DAY]
    usage = UsageStore(None, lambda: days[0])
    usage.add("acme", "k", "", 1, 1)
    days[0] = date(2026, 11, 28)
    assert usage.tokens_today("k") == 0
    usage.add("acme", "k", "", 2, 2)
    assert usage.tokens_today("k") == 4
    assert [row["prompt_tokens"] for row in usage.rows(UsageQuery("acme", groups=("day",)))] == [1, 2]


def test_no_count_of_many_threads_and_two_servers_is_lost(tmp_path: Path) -> None:
    stores = [UsageStore(tmp_path / "usage.sqlite") for _ in range(2)]
    work = lambda usage: [usage.add("t", "k", "a", 1, 0) or (i % 50 or usage.write()) for i in range(300)]  # noqa: E731
    threads = [Thread(target=work, args=(usage,)) for usage in stores * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for usage in stores:
        usage.close()
    assert UsageStore(tmp_path / "usage.sqlite").rows(UsageQuery("t"))[0]["requests"] == 1800


def test_what_cannot_be_written_stays_until_it_can(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    usage = filled(path)
    usage.write()
    usage._file.execute("ALTER TABLE usage RENAME TO gone")
    usage.add("acme", "k1", "acme/one", 10, 5)
    usage.write()
    usage._file.execute("ALTER TABLE gone RENAME TO usage")
    assert usage.rows(UsageQuery("acme", groups=("tenant",)))[0]["prompt_tokens"] == 21


def test_a_file_that_is_no_database_is_refused_or_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = usage_path(str(tmp_path / "store"))
    assert path == tmp_path / "store.usage.sqlite" and usage_path("s3://bucket/store") is None
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ServeError, match="cannot be opened"):
        open_usage(path, None)
    assert open_usage(None, str(tmp_path / "store")).path is None
    assert "give --usage FILE" in caplog.text


@pytest.mark.parametrize(("text", "groups"), [("day", ("day",)), ("adapter, tenant", ("adapter", "tenant"))])
def test_groups_are_known_names(text: str, groups: tuple[str, ...]) -> None:
    assert parse_groups(text) == groups
    with pytest.raises(ServeError, match="must be one of: day, tenant, key, adapter"):
        parse_groups(f"{text},1; DROP TABLE usage")


def test_days_are_days() -> None:
    assert parse_day("2026-11-27", "since") == DAY
    with pytest.raises(ServeError, match="since='today'"):
        parse_day("today", "since")
