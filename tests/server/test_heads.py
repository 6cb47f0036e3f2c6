"""What comes before the key is known is bounded, and shuts nobody out."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tiny_serve import LONGEST_WAIT
from tiny_server import GREEDY, Served, served

ASK = {"model": "acme/one", "prompt": "x", **GREEDY}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), max_connections=40, read_s=60.0) as found:
        yield found


def connected(at: Served) -> socket.socket:
    host, _, port = at.url.removeprefix("http://").partition(":")
    found = socket.create_connection((host, int(port)), LONGEST_WAIT)
    found.settimeout(LONGEST_WAIT)
    return found


def first_line(at: Served, headers: bytes) -> bytes:
    with connected(at) as one:
        one.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(OSError):
            one.sendall(headers + b"Connection: close\r\n\r\n")
        return one.recv(60).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", b"200"),
        (b"X: " + b"a" * 20_000 + b"\r\n", b"200"),
        (b"X: " + b"a" * 131_072 + b"\r\n", b"431"),
        (b"".join(b"X%d: a\r\n" % i for i in range(90)), b"200"),
        (b"".join(b"X%d: a\r\n" % i for i in range(1_000)), b"431"),
    ],
    ids=["none", "one", "long", "some", "many"],
)
def test_a_head_is_bounded(at: Served, headers: bytes, status: bytes) -> None:
    assert status in first_line(at, headers)


def test_silent_connections_shut_nobody_out(at: Served) -> None:
    held = [connected(at) for _ in range(120)]
    for one in held:
        with suppress(OSError):
            one.sendall(b"GET")
    for _ in range(3):
        assert at.http().post("/v1/completions", json=ASK).status_code == 200
    for one in held:
        one.close()


def test_a_large_body_is_no_head(at: Served) -> None:
    body = {**ASK, "user": "u" * 200_000}
    assert at.http().post("/v1/completions", json=body).status_code == 200
    content = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(at) as one:  # in one piece
        one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        assert b"200" in one.recv(60)
    with at.http() as http:  # one connection, several requests
        assert [http.post("/v1/completions", json=body).status_code for _ in range(3)] == [200] * 3


def test_a_clients_own_id_is_kept(at: Served) -> None:
    assert at.http().get("/v1/models", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    for bad in ("a b", "x" * 200, "{}"):
        assert at.http().get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"] != bad
