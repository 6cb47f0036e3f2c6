"""A file comes in parts by OpenAI's own client, to its tenant alone."""

import io

import openai
import pytest
from tuned_server import ROWS, jsonl, tuned

DATA = jsonl(ROWS)


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    with tuned(tmp_path_factory.mktemp("uploads"), is_trained=False) as found:
        yield found


def begun(client):
    return client.uploads.create(filename="rows.jsonl", purpose="fine-tune", bytes=len(DATA), mime_type="text/jsonl").id


def test_a_file_comes_in_parts(idle):
    id = begun(idle.acme)
    parts = [idle.acme.uploads.parts.create(id, data=io.BytesIO(data)).id for data in (DATA[:20], DATA[20:])]
    done = idle.acme.uploads.complete(id, part_ids=parts)
    assert done.status == "completed" and done.file.bytes == len(DATA)
    assert idle.acme.files.content(done.file.id).read() == DATA


def test_an_upload_is_its_tenants_and_can_be_given_up(idle):
    id, uploads = begun(idle.acme), idle.globex.uploads
    for reach in (
        lambda: uploads.cancel(id),
        lambda: uploads.complete(id, part_ids=["x"]),
        lambda: uploads.parts.create(id, data=io.BytesIO(b"x")),
    ):
        with pytest.raises(openai.NotFoundError):
            reach()
    assert idle.acme.uploads.cancel(id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        idle.acme.uploads.complete(id, part_ids=["x"])
    for wrong in ({"purpose": "assistants"}, {"bytes": 0}, {"filename": "\n"}):
        given = {"filename": "x", "purpose": "fine-tune", "bytes": 3, "mime_type": "text/jsonl", **wrong}
        with pytest.raises(openai.BadRequestError):
            idle.acme.uploads.create(**given)
