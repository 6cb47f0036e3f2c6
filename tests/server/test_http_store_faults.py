"""What is wrong with the store is told to the client by a status, and to the operator by a log line and a metric."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_serve import make_adapter
from tiny_server import GREEDY, Served, make_base, served

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.file.codec import encode

ASK = {"prompt": "the", **GREEDY}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as found:
        yield found


def metric(at: Served, code: str) -> float:
    lines = at.http().get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(f'polyvera_store_faults_total{{code="{code}"')
    )


def test_a_damaged_file_is_the_servers_fault(at: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = at.registry.put("acme/hurt", at.adapters["acme/one"])
    with open(ref.path, "r+b") as file:  # noqa: PTH123
        file.write(b"\xff" * 8)
    with caplog.at_level(logging.ERROR):
        answer = at.http().post("/v1/completions", json={"model": "acme/hurt", **ASK})
    error = answer.json()["error"]
    assert answer.status_code == 500 and error["type"] == "server_error" and error["code"] == "adapter_damaged"
    assert "the stored file of acme/hurt@1 is damaged" in error["message"] and str(tmp_path) not in answer.text
    assert ref.path in caplog.text and metric(at, "adapter_damaged") == 1


@pytest.mark.parametrize("kind", ["a link", "a pipe", "junk"])
def test_one_bad_entry_takes_no_list(at: Served, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "store/adapters/acme/bad"
    folder.mkdir()
    path = folder / "1.safetensors"
    {"a link": lambda: path.symlink_to("/etc/hostname"), "a pipe": lambda: os.mkfifo(path)}.get(
        kind, lambda: path.write_bytes(b"junk" * 10)
    )()
    (tmp_path / "store/aliases/acme/one").mkdir(parents=True)
    (tmp_path / "store/aliases/acme/one/@broken").write_text("zzz")
    models = at.http().get("/v1/models")
    assert models.status_code == 200 and "acme/bad" not in models.text and "acme/two" in models.text
    listed = at.http().get("/v1/adapters")
    assert listed.status_code == 200 and {"acme/one", "acme/two"} <= {one["name"] for one in listed.json()["data"]}
    assert str(tmp_path) not in models.text + listed.text
    assert at.http().get("/v1/adapters/acme/one").status_code == 200
    assert at.http().post("/v1/completions", json={"model": "acme/one", **ASK}).status_code == 200


def test_an_adapter_of_another_base_is_not_offered(at: Served) -> None:
    stranger = replace(make_adapter(make_base(), AdapterSpec(rank=4), 9), base="0" * 64)
    at.registry.put("acme/stranger", stranger)
    models = at.http().get("/v1/models").json()["data"]
    assert "acme/stranger" not in {one["id"] for one in models}
    assert at.http().get("/v1/models/acme/stranger").status_code == 404
    shown = {one["name"]: one["servable"] for one in at.http().get("/v1/adapters").json()["data"]}
    assert shown["acme/stranger"] is False and shown["acme/one"] is True
    answer = at.http().post("/v1/completions", json={"model": "acme/stranger", **ASK})
    assert answer.status_code == 404 and "is an adapter of another base model" in answer.json()["error"]["message"]
    assert "check_base" not in answer.text
    refused = at.http().put("/v1/adapters/acme/strange", content=encode(stranger))
    assert refused.status_code == 422 and "another base model" in refused.text


def test_an_aliased_version_conflicts(at: Served) -> None:
    http = at.http()
    assert http.post("/v1/aliases", json={"name": "acme/two", "alias": "prod"}).status_code == 200
    answer = http.delete("/v1/adapters/acme/two@1")
    assert answer.status_code == 409 and "prod" in answer.text and "with_aliases=true" in answer.text
    assert http.delete("/v1/adapters/acme/two@1?with_aliases=true").status_code == 200


def test_a_full_disk_is_507_and_leaves_nothing(at: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data, http = encode(at.adapters["acme/one"]), at.http()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        answer = http.put("/v1/adapters/acme/new", content=data)
    error = answer.json()["error"]
    assert answer.status_code == 507 and error["type"] == "server_error" and "the store is full" in error["message"]
    assert str(tmp_path) not in answer.text and metric(at, "store_full") == 1
    assert [path for path in (tmp_path / "store/.tmp").iterdir() if path.is_file()] == []
    assert http.post("/v1/completions", json={"model": "acme/one", **ASK}).status_code == 200
    assert http.put("/v1/adapters/acme/new", content=data).status_code == 201


def test_a_store_that_has_gone_is_503_and_not_ready_until_it_is_back(at: Served, tmp_path: Path) -> None:
    http, store = at.http(), tmp_path / "store"
    assert http.get("/ready").status_code == 200
    shutil.move(store, tmp_path / "away")
    for answer in (
        http.get("/ready"),
        http.get("/v1/models"),
        http.get("/v1/adapters"),
        http.post("/v1/completions", json={"model": "acme/one", **ASK}),
        http.put("/v1/adapters/acme/new", content=encode(at.adapters["acme/one"])),
    ):
        assert answer.status_code == 503 and str(tmp_path) not in answer.text
    assert http.get("/health").status_code == 200 and not store.exists()
    shutil.move(tmp_path / "away", store)
    assert http.get("/ready").status_code == 200
    assert http.post("/v1/completions", json={"model": "acme/one", **ASK}).status_code == 200


def test_the_rank_that_holds_is_shown(at: Served) -> None:
    at.registry.put("acme/plain", make_adapter(make_base(), AdapterSpec("vera"), 3))
    assert at.http().get("/v1/adapters/acme/plain").json()["rank"] == 256
