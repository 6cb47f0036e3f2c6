"""A file is checked row by row, counted against its tenant's quota, and reached by its tenant alone."""

import json

import pytest
from some_jobs import DATA, ROWS, create, opened, upload

from polyvera.errors import ConflictError, QuotaError, ServeError, UnknownObjectError
from polyvera.jobs.training_files import ORDERS, read_table

CHAT = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_file_is_kept_as_it_came(tmp_path):
    tuning = opened(tmp_path)
    file = tuning.files.add("acme", "rows.jsonl", "fine-tune", DATA)
    again = opened(tmp_path).files
    assert again.get("acme", file.id) == file and again.list("acme") == [file] == again.list("acme", "fine-tune")
    assert again.path(file.id).read_bytes() == DATA and (file.num_rows, file.num_bytes) == (len(ROWS), len(DATA))
    assert again.list("acme", "batch") == []
    assert len(read_table(again.path(upload(tuning, "acme", lines(CHAT, CHAT))), "x")) == 2


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_goes_on_behind_any_file_that_was_seen(tmp_path, order):
    tuning = opened(tmp_path)
    files, made = tuning.files, sorted(upload(tuning, "acme") for _ in range(4))
    expected = made[:: {"asc": 1, "desc": -1}[order]]
    assert [file.id for file in files.list("acme", order=order)] == expected
    for i, id in enumerate(expected):
        assert [file.id for file in files.list("acme", None, 2, id, order)] == expected[i + 1 : i + 3]
        files.delete("acme", id)
        assert [file.id for file in files.list("acme", None, 2, id, order)] == expected[i + 1 : i + 3]
        assert files.list("globex", after=id) == files.list("acme", "batch", after=id) == []


def test_a_list_goes_on_behind_a_file_whose_id_has_no_time_while_it_is_there(tmp_path):
    tuning = opened(tmp_path)
    files, [first, second] = tuning.files, sorted(upload(tuning, "acme") for _ in range(2))
    old = f"file-{'a' * 12}4{'a' * 19}"
    with tuning.database.changing() as connection:
        connection.execute("UPDATE files SET id = ?, created_s = created_s - 1 WHERE id = ?", (old, first))
    assert [file.id for file in files.list("acme", after=old, order="asc")] == [second]
    assert [file.id for file in files.list("acme", after=second)] == [old]
    for unknown in (lambda: files.list("globex", after=old), lambda: files.list("acme", after="file-x")):
        with pytest.raises(UnknownObjectError, match="No such File object"):
            unknown()


def test_another_tenant_reaches_nothing(tmp_path):
    files = opened(tmp_path).files
    id = files.add("acme", "rows.jsonl", "fine-tune", DATA).id
    assert files.list("globex") == []
    for reach in (files.get, files.delete):
        with pytest.raises(UnknownObjectError, match=f"No such File object: {id}"):
            reach("globex", id)
    assert files.path(id).exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "rows.jsonl has no rows"),
        (b"\xff\xfe", "UTF-8"),
        (DATA + b"{half", "rows.jsonl, (line|row) 13: not valid JSON"),
        (lines(*ROWS[:2], {"prompt": "w1", "completion": ""}), "row 3: completion is empty"),
        (lines(CHAT, {"messages": CHAT["messages"][:1]}), "row 2: the last turn is the user's"),
        (lines({"text": "w1", "label": "a"}, {"text": "w2", "label": "b"}), "give messages"),
        (lines({"x": 1}), "fit none of the known forms"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_kept(tmp_path, data, words):
    files = opened(tmp_path).files
    with pytest.raises(ServeError, match=words) as caught:
        files.add("acme", "rows.jsonl", "fine-tune", data)
    assert str(tmp_path) not in str(caught.value) and caught.value.param == "file"
    assert files.list("acme") == [] and not list((tmp_path / "files").iterdir())


def test_a_tenants_files_have_a_quota_of_bytes(tmp_path):
    files = opened(tmp_path, max_tenant_bytes=2 * len(DATA)).files
    first = files.add("acme", "rows.jsonl", "fine-tune", DATA)
    files.add("acme", "rows.jsonl", "fine-tune", DATA)
    with pytest.raises(QuotaError, match="delete some first"):
        files.add("acme", "rows.jsonl", "fine-tune", b"not even read")
    files.add("globex", "rows.jsonl", "fine-tune", DATA)
    files.delete("acme", first.id)
    files.add("acme", "rows.jsonl", "fine-tune", DATA)
    assert len(files.list("acme")) == 2 and not files.path(first.id).exists()


@pytest.mark.parametrize(
    ("data", "words"), [(b"\n" * 100_001, "100,000 rows"), (b"[" * 600_000, "lists"), (b"," * 5_000_000, "values")]
)
def test_a_file_of_too_many_parts_is_not_read(tmp_path, data, words):
    with pytest.raises(ServeError, match=words):
        opened(tmp_path).files.add("acme", "rows.jsonl", "fine-tune", data)


def test_a_file_that_a_job_needs_stays(tmp_path):
    tuning = opened(tmp_path)
    job = create(tuning, "acme")
    with pytest.raises(ConflictError, match=job.id):
        tuning.files.delete("acme", job.training_file)
    tuning.jobs.move("acme", job.id, "cancel")
    tuning.files.delete("acme", job.training_file)
    assert tuning.files.list("acme") == []
