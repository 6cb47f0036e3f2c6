"""Every change stands in the audit log, with who made it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_server import Served, served

from polyvera.server.api_keys import EVERYONE
from polyvera.server.audit_log import AuditLog
from polyvera.store.file.codec import encode


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(at: Served, key: str) -> None:
    """Publishes, points, unpoints and removes."""
    http, data = at.http(key), encode(at.adapters["acme/one"])
    assert http.put("/v1/adapters/acme/new", content=data).status_code == 201
    assert http.put("/v1/adapters/acme/new", content=data, params={"alias": "live"}).status_code == 201
    assert http.post("/v1/aliases", json={"name": "acme/new", "alias": "old", "version": 1}).status_code == 200
    assert http.delete("/v1/aliases/acme/new@old").status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/two"}).status_code == 200
    assert http.delete("/v1/adapters/acme/new@1").status_code == 200


def test_changes_and_keys_are_told_with_who_made_them(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with served(tmp_path, with_keys=True, audit_log=path) as at:
        assert at.keys is not None
        at.http("none").get("/v1/models")  # the file of keys is read
        secret, key = at.keys.add("acme", ["acme/*"], admin=True)
        changed(at, secret)
        at.keys.remove(key.id)
        assert at.http(secret).get("/v1/models").status_code == 401
    found = rows(path)
    actions = ["keys", "publish", "publish", "alias", "unalias", "unload", "remove", "keys"]
    assert [row["action"] for row in found] == actions
    assert found[0]["added"] == found[-1]["removed"] == [key.id]
    assert all((row["tenant"], row["key"]) == ("acme", key.id) for row in found[1:-1])
    assert found[2]["adapter"] == "acme/new@2" and found[2]["alias"] == "live" and found[6]["adapter"] == "acme/new@1"
    assert secret not in path.read_text()


def test_without_a_file_it_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "polyvera.audit"):
        AuditLog().write(EVERYONE, "publish", adapter="a/b@1")
    assert json.loads(caplog.messages[0])["adapter"] == "a/b@1"


def test_a_change_that_cannot_be_written_is_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = AuditLog(Path("/dev/full"))
    audit.write(EVERYONE, "remove", adapter="a/b@1")
    assert "is not in the audit log: No space left on device" in caplog.text
