"""A file comes in parts, is whole or nothing, and is its tenant's alone."""

import errno
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from threading import Barrier

import pytest
from some_jobs import DATA, failing_commits, opened

from polyvera.errors import ConflictError, QuotaError, ServeError, StoreFullError, UnknownObjectError
from polyvera.jobs import upload_table

SIZE, HALF = len(DATA), len(DATA) // 2


def begun(tuning, tenant="acme", size=SIZE):
    return tuning.uploads.create(tenant, "rows.jsonl", "fine-tune", size).id


def sent(tuning, id, *parts):
    return [tuning.uploads.add_part("acme", id, part).id for part in parts]


def test_parts_become_a_file_in_the_order_that_is_said(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning)
    second, first = sent(tuning, id, DATA[HALF:], DATA[:HALF])
    upload, file = tuning.uploads.complete("acme", id, [first, second], md5(DATA).hexdigest())
    assert upload.status == "completed" and upload.file == file.id and tuning.files.path(file.id).read_bytes() == DATA
    assert not list((tmp_path / "uploads").iterdir())
    for again in (lambda: sent(tuning, id, b"x"), lambda: tuning.uploads.cancel("acme", id)):
        with pytest.raises(ConflictError, match="is completed"):
            again()


def test_what_is_not_whole_is_refused_and_can_be_mended(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning)
    [first] = sent(tuning, id, DATA[:HALF])
    for parts, checksum, words in (
        ([first], None, "the parts have"),
        ([first, "part_x"], None, "is no part of it"),
        ([first, first], None, "stands twice"),
    ):
        with pytest.raises(ServeError, match=words):
            tuning.uploads.complete("acme", id, parts, checksum)
    [second] = sent(tuning, id, DATA[HALF:])
    with pytest.raises(ServeError, match="another checksum"):
        tuning.uploads.complete("acme", id, [first, second], "0" * 32)
    with pytest.raises(ServeError, match="more than the"):
        sent(tuning, id, b"x")
    assert tuning.uploads.complete("acme", id, [first, second], None)[1].num_bytes == len(DATA)


def test_a_file_that_cannot_be_trained_on_is_refused(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning, size=4)
    with pytest.raises(ServeError, match="rows.jsonl"):
        tuning.uploads.complete("acme", id, sent(tuning, id, b"junk"), None)
    assert tuning.uploads.get("acme", id).status == "pending" and not tuning.files.list("acme")


def test_another_tenants_upload_is_not_there(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning)
    for reach in (
        lambda: tuning.uploads.get("globex", id),
        lambda: tuning.uploads.add_part("globex", id, b"x"),
        lambda: tuning.uploads.complete("globex", id, [], None),
        lambda: tuning.uploads.cancel("globex", id),
    ):
        with pytest.raises(UnknownObjectError, match="No such Upload"):
            reach()


def test_uploads_have_bounds_and_an_end(tmp_path, monkeypatch):
    tuning = opened(tmp_path, max_tenant_bytes=100)
    with pytest.raises(QuotaError, match="101 bytes"):
        begun(tuning, size=101)
    one, other = begun(tuning, size=60), begun(tuning, size=60)
    sent(tuning, one, b"x" * 60)
    with pytest.raises(QuotaError, match="pending parts take 60"):
        sent(tuning, other, b"x" * 60)
    with pytest.raises(ServeError, match="of some bytes"):
        sent(tuning, other, b"")
    monkeypatch.setattr(upload_table, "MAX_PENDING", 2)
    with pytest.raises(QuotaError, match="2 of your uploads"):
        begun(tuning, size=1)
    with tuning.database.changing() as connection:
        connection.execute("UPDATE uploads SET expires_s = 5")
    with pytest.raises(ConflictError, match="is expired"):
        sent(tuning, other, b"x")
    begun(tuning, size=1)
    assert not list((tmp_path / "uploads").iterdir())
    with pytest.raises(UnknownObjectError):
        tuning.uploads.get("acme", one)


def at_once(work, num=6):
    """What each of so many threads got: a result, or what it raised."""

    def one(_):
        started.wait()
        try:
            return work()
        except (ConflictError, ServeError) as error:
            return error

    started = Barrier(num)
    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(one, range(num)))


def test_one_of_several_who_complete_at_once_makes_the_file(tmp_path):
    tuning = opened(tmp_path)
    for _ in range(5):
        id = begun(tuning)
        parts = sent(tuning, id, DATA[:HALF], DATA[HALF:])
        found = at_once(lambda id=id, parts=parts: tuning.uploads.complete("acme", id, parts, None))
        [(upload, file)] = [one for one in found if isinstance(one, tuple)]
        assert all(isinstance(one, ConflictError) for one in found if not isinstance(one, tuple))
        assert [one.id for one in tuning.files.list("acme")] == [file.id] and upload.file == file.id
        assert len(list((tmp_path / "files").iterdir())) == 1 and not list((tmp_path / "uploads").iterdir())
        tuning.files.delete("acme", file.id)


def test_parts_that_come_at_once_are_never_more_than_was_said(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning)
    found = at_once(lambda: tuning.uploads.add_part("acme", id, DATA[: HALF + 1]))
    assert sum(not isinstance(one, ServeError) for one in found) == 1 == len(list((tmp_path / "uploads").iterdir()))


def test_a_full_disk_leaves_no_part(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    tuning = opened(tmp_path)
    id = begun(tuning)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StoreFullError):
            sent(tuning, id, DATA)
        with pytest.raises(StoreFullError):
            tuning.files.add("acme", "rows.jsonl", "fine-tune", DATA)
    assert not list((tmp_path / "uploads").iterdir()) and not list((tmp_path / "files").iterdir())
    assert tuning.uploads.complete("acme", id, sent(tuning, id, DATA), None)[1].num_bytes == len(DATA)


def test_a_disk_that_is_full_when_an_upload_ends_costs_neither_it_nor_a_quota(tmp_path):
    tuning = opened(tmp_path)
    id = begun(tuning)
    parts = sent(tuning, id, DATA[:HALF], DATA[HALF:])
    for end in (lambda: tuning.uploads.complete("acme", id, parts, None), lambda: tuning.uploads.cancel("acme", id)):
        with failing_commits(tuning.database), pytest.raises(StoreFullError, match="is full"):
            end()
        assert tuning.uploads.get("acme", id).status == "pending" and tuning.files.list("acme") == []
        assert len(list((tmp_path / "uploads").iterdir())) == 2 and not list((tmp_path / "files").iterdir())
    assert tuning.uploads.complete("acme", id, parts, None)[1].num_bytes == len(DATA)


def test_old_parts_stay_until_it_is_kept_that_they_go(tmp_path):
    tuning = opened(tmp_path)
    sent(tuning, begun(tuning), DATA)
    with tuning.database.changing() as connection:
        connection.execute("UPDATE uploads SET expires_s = 5")
    with failing_commits(tuning.database), pytest.raises(StoreFullError):
        begun(tuning)
    assert len(list((tmp_path / "uploads").iterdir())) == 1
    begun(tuning)
    assert not list((tmp_path / "uploads").iterdir())


def test_a_part_that_cannot_be_removed_hides_no_end(tmp_path, monkeypatch, caplog):
    def refused(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied")

    tuning = opened(tmp_path)
    id = begun(tuning)
    parts = sent(tuning, id, DATA)
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", refused)
        assert tuning.uploads.complete("acme", id, parts, None)[0].status == "completed"
        with failing_commits(tuning.database), pytest.raises(StoreFullError, match="is full"):
            tuning.files.add("acme", "rows.jsonl", "fine-tune", DATA)
    assert "cannot be removed: Permission denied" in caplog.text
