"""A transaction is whole or nothing, and a database that cannot be used says so."""

import pytest

from polyvera.errors import StoreFullError, StoreUnavailableError
from polyvera.jobs.database import FILE, ChangeWatch, Database

USE = "INSERT INTO usage VALUES (?, ?, ?)"


def test_a_transaction_is_whole_or_nothing(tmp_path):
    database = Database(tmp_path / "a" / "b")
    with database.changing() as connection:
        connection.execute(USE, ("acme", "today", 1))
    with pytest.raises(KeyError), database.changing() as connection:
        connection.execute(USE, ("acme", "tomorrow", 1))
        raise KeyError
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    found = Database(tmp_path / "a" / "b").rows("SELECT * FROM usage")
    assert [tuple(row) for row in found] == [("acme", "today", 1)]


def test_a_place_that_holds_no_database_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        Database(tmp_path / "file" / "jobs")
    (tmp_path / FILE).write_bytes(b"no database at all, and long enough to be looked at" * 50)
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        Database(tmp_path)


def test_a_change_is_seen_once(tmp_path):
    database = Database(tmp_path)
    watch = ChangeWatch(database.path)
    assert watch.has_changed() and not watch.has_changed()
    with database.changing() as connection:
        connection.execute(USE, ("acme", "today", 1))
    assert watch.has_changed() and not watch.has_changed()
    watch.close()


def test_a_full_disk_is_told_as_one(tmp_path):
    database = Database(tmp_path)
    with database.changing() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFullError, match="cannot be used"):
        for i in range(2000):
            with database.changing() as connection:
                connection.execute(USE, (f"tenant {i}" * 50, "today", 1))
