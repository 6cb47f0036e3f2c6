"""What proxies and browsers do by custom works on every route."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tiny_server import Served, served

ORIGIN = "http://localhost:3000"
BODY = {"model": "acme/one", "prompt": "Hi", "max_tokens": 1}


@pytest.fixture(scope="module")
def customs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root: Path = tmp_path_factory.mktemp("customs")
    with served(root, with_keys=True, allow_origin=(ORIGIN,), root_path="/llm", max_body_bytes=1 << 16) as found:
        yield found


@pytest.fixture(scope="module")
def http(customs: Served) -> httpx.Client:
    assert customs.keys is not None
    secret, _ = customs.keys.add("acme", ["*"], base=True, admin=True)
    return customs.http(secret)


def packed(data: bytes, encoding: str = "gzip") -> dict[str, object]:
    return {"content": data, "headers": {"content-type": "application/json", "content-encoding": encoding}}


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/adapters/acme/one", "/version"])
def test_head_is_get_without_a_body_and_a_slash_changes_nothing(http: httpx.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"") and head.headers["content-type"] == whole.headers[
        "content-type"
    ]
    assert http.get(f"{path}/").json() == whole.json() == http.get(f"/llm{path}").json()
    assert http.head("/nothing").status_code == 404


def test_a_key_may_stand_where_anthropic_s_clients_put_it(customs: Served, http: httpx.Client) -> None:
    secret = http.headers["authorization"].removeprefix("Bearer ")
    assert customs.http().get("/v1/models", headers={"x-api-key": secret}).status_code == 200
    assert customs.http().get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401
    assert customs.http("wrong").get("/v1/models", headers={"x-api-key": secret}).status_code == 401


def test_a_client_s_id_is_kept(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"


def test_gzip_both_ways(http: httpx.Client) -> None:
    assert http.post("/v1/completions", **packed(gzip.compress(json.dumps(BODY).encode()))).status_code == 200
    text = json.dumps(BODY).encode()
    members = gzip.compress(text[:5]) + gzip.compress(b"") + gzip.compress(text[5:])
    assert http.post("/v1/completions", **packed(members)).status_code == 200
    stored = http.get("/v1/models", headers={"accept-encoding": "gzip"})
    assert stored.json()["object"] == "list"


@pytest.mark.parametrize(
    ("data", "encoding", "status"),
    [
        (gzip.compress(b" " * (1 << 24), mtime=0), "gzip", 413),
        (b"no gzip", "gzip", 400),
        (gzip.compress(json.dumps(BODY).encode(), mtime=0)[:-12], "gzip", 400),
        (gzip.compress(json.dumps(BODY).encode(), mtime=0) + b"more", "gzip", 400),
        (gzip.compress(b"", mtime=0) * 3000 + b"more", "gzip", 400),
        (b"{}", "br", 400),
    ],
)
def test_what_cannot_be_unpacked_is_refused(http: httpx.Client, data: bytes, encoding: str, status: int) -> None:
    answer = http.post("/v1/completions", **packed(data, encoding))
    assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_page_of_an_allowed_origin_may_call(customs: Served, http: httpx.Client) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    preflight = customs.http().options("/v1/completions", headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    answer = http.post("/v1/completions", json=BODY, headers={"origin": ORIGIN})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    refused = customs.http().options("/v1/completions", headers=asked | {"origin": "http://evil.test"})
    assert "access-control-allow-origin" not in refused.headers
    wrong = customs.http("wrong").get("/v1/models", headers={"origin": ORIGIN})
    assert wrong.status_code == 401 and wrong.headers["access-control-allow-origin"] == ORIGIN


def test_an_open_server_takes_an_allowed_origin_and_no_other(tmp_path: Path) -> None:
    with served(tmp_path, allow_origin=(ORIGIN,)) as found:
        assert found.http().post("/v1/completions", json=BODY, headers={"origin": ORIGIN}).status_code == 200
        assert (
            found.http().post("/v1/completions", json=BODY, headers={"origin": "http://evil.test"}).status_code == 403
        )
