"""Files with OpenAI's own client: kept, listed and read by their tenant, and by nobody else."""

import io

import httpx
import openai
import pytest
from tiny_server import served
from tuned_server import ROWS, jsonl, tuned


@pytest.fixture(scope="module")
def tuned_at(tmp_path_factory):
    with tuned(tmp_path_factory.mktemp("files"), is_trained=False, max_tenant_bytes=4000) as found:
        yield found


def test_a_file_is_uploaded_read_listed_and_deleted(tuned_at):
    files = tuned_at.acme.files
    made = files.create(file=("rows.jsonl", jsonl(ROWS)), purpose="fine-tune")
    assert (made.filename, made.bytes, made.status, made.purpose) == (
        "rows.jsonl",
        len(jsonl(ROWS)),
        "processed",
        "fine-tune",
    )
    assert files.retrieve(made.id) == made and files.content(made.id).read() == jsonl(ROWS)
    other = tuned_at.upload(tuned_at.acme)
    assert {file.id for file in files.list()} == {made.id, other}
    assert len(list(files.list(limit=1))) == 2 and list(files.list(purpose="batch")) == []
    with pytest.raises(openai.NotFoundError, match="No such File object: file-x"):
        files.list(after="file-x")
    up, down = ([file.id for file in files.list(order=order)] for order in ("asc", "desc"))
    assert up == down[::-1]
    for id in (made.id, other):
        assert files.delete(id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        files.retrieve(made.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_list_goes_on_behind_a_file_that_was_deleted_meanwhile(tuned_at, order):
    files = tuned_at.acme.files
    made = [tuned_at.upload(tuned_at.acme) for _ in range(5)]
    seen = []
    for file in files.list(limit=2, order=order):
        files.delete(file.id)
        seen.append(file.id)
    assert sorted(seen) == sorted(made) and list(files.list()) == []
    assert list(files.list(after=made[0], order=order)) == []


def test_another_tenants_files_are_not_there(tuned_at):
    id, files = tuned_at.upload(tuned_at.acme), tuned_at.globex.files
    assert list(files.list()) == []
    for reach in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {id}"):
            reach(id)
    tuned_at.acme.files.delete(id)


def test_only_the_rows_that_are_asked_for_are_read(tuned_at):
    id = tuned_at.upload(tuned_at.acme)
    with httpx.Client(headers={"Authorization": f"Bearer {tuned_at.acme.api_key}"}) as http:
        path = tuned_at.at.url + f"/v1/files/{id}/examples"
        found = http.get(path, params={"limit": 1}).json()
        stored = tuned_at.tuning.files.path(id)
        stored.write_bytes(stored.read_bytes().splitlines(keepends=True)[0] + b"{broken")
        assert http.get(path, params={"limit": 1}).json() == found
    assert found["num_rows"] == len(ROWS) > len(found["data"]) == 1 and found["unread_columns"] == []
    tuned_at.acme.files.delete(id)


def test_bad_rows_are_named(tuned_at):
    bad = [*ROWS, {"messages": ROWS[0]["messages"][:1]}, {"messages": []}]
    with pytest.raises(openai.BadRequestError, match=r"rows.jsonl, row 3: the last turn.*row 4") as caught:
        tuned_at.upload(tuned_at.acme, bad)
    assert caught.value.param == "file" and list(tuned_at.acme.files.list()) == []


def test_bytes_beyond_the_quota_are_refused(tuned_at):
    with pytest.raises(openai.RateLimitError, match="delete some first") as caught:
        tuned_at.acme.files.create(file=("rows.jsonl", io.BytesIO(b"x" * 5000)), purpose="fine-tune")
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}, "purpose: must be 'fine-tune'"),
        ({"files": {"file": ("a.jsonl", b"{}")}}, "purpose: must be"),
        ({"files": {"other": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}, "other: this server"),
        ({"files": {"purpose": (None, b"fine-tune")}}, "file: is required"),
        ({"files": {"file": ("a\u200bb.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}, "printable"),
        ({"json": {}}, "multipart/form-data"),
    ],
)
def test_what_is_no_upload_is_refused(tuned_at, fields, words):
    with httpx.Client(headers={"Authorization": f"Bearer {tuned_at.acme.api_key}"}) as http:
        answer = http.post(f"{tuned_at.at.url}/v1/files", **fields)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_server_that_does_not_train_says_so(tmp_path):
    with served(tmp_path) as at, pytest.raises(openai.BadRequestError, match="start it with --train"):
        list(at.openai().files.list())
