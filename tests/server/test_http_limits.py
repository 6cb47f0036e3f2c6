"""Too much, too slow, too many, and clients that go."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tiny_serve import LONGEST_WAIT, assert_nothing_is_left, until
from tiny_server import Served, served

from polyvera.engine.limits import Limits

LONG = {"model": "acme/one", "prompt": "x", "max_tokens": 150, "ignore_eos": True, "temperature": 1}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(max_rows=2, max_waiting=6)
    with served(
        tmp_path_factory.mktemp("served"), limits, read_s=1.0, write_s=2.0, max_body_bytes=20_000, max_per_tenant=5
    ) as found:
        yield found
        assert_nothing_is_left(found.engine)


def raw(at: Served) -> socket.socket:
    host, _, port = at.url.removeprefix("http://").partition(":")
    found = socket.create_connection((host, int(port)))
    found.settimeout(LONGEST_WAIT)
    return found


def head(at: Served, length: int | None, path: str = "/v1/completions") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode()


def everything(connection: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            data = connection.recv(65_536)
        except ConnectionResetError:
            return found
        if not data:
            return found
        found += data


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_refused(at: Served, is_chunked: bool) -> None:
    parts = (b"x" * 5_000 for _ in range(10))
    content = parts if is_chunked else b"x" * 50_000
    answer = at.http().post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_dribbles_is_cut_off(at: Served) -> None:
    with raw(at) as connection:
        connection.sendall(head(at, 1_000) + b"{")
        assert b" 408 " in connection.recv(65_536)


def test_a_head_that_never_ends_is_cut_off(at: Served) -> None:
    with raw(at) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert everything(connection) == b""
    with raw(at) as silent:
        assert everything(silent) == b""


def test_what_is_beyond_the_tenants_own_bound_waits(at: Served) -> None:
    with ThreadPoolExecutor(11) as pool:
        asked = [pool.submit(lambda: at.http().post("/v1/completions", json=LONG)) for _ in range(11)]
    assert {one.result().status_code for one in asked} == {200}, "five under way and six that wait"


def test_too_many_get_429(at: Served) -> None:
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(lambda: at.http().post("/v1/completions", json=LONG)) for _ in range(16)]
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert at.http().post("/v1/completions", json={**LONG, "n": 6}).status_code == 429
    assert at.http().post("/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200, "given back"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_frees_its_rows(at: Served, is_stream: bool) -> None:
    before = at.engine.stats().totals["answer_tokens"]
    with raw(at) as connection:
        body = httpx.Request("POST", at.url, json={**LONG, "n": 4, "stream": is_stream}).content
        connection.sendall(head(at, len(body)) + body)
        until(lambda: at.engine.stats().totals["answer_tokens"] > before)
    until(lambda: not at.engine.stats().running and not at.engine.stats().waiting)
    assert at.engine.stats().totals["answer_tokens"] - before < 4 * 150, "it was not answered to the end"


def test_slow_clients_disturb_nobody(at: Served) -> None:
    idle = [raw(at) for _ in range(50)]
    for connection in idle:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nX-Slow: ")
    started = time.monotonic()
    assert at.http().post("/v1/completions", json={**LONG, "max_tokens": 3}).status_code == 200
    assert time.monotonic() - started < LONGEST_WAIT / 2
    for connection in idle:
        connection.close()


def test_hosts_and_pages_of_others_are_refused(at: Served) -> None:
    http = at.http()
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"Origin": at.url, "Host": "localhost"}).status_code == 403
    assert http.get("/v1/models", headers={"Origin": at.url}).status_code == 200


def test_a_draining_server_ends_what_runs_and_takes_nothing_new(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("draining")) as at, at.http() as http:
        http.get("/ready")  # a connection that stays open
        found: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: found.append(at.http().post("/v1/completions", json=LONG)))
        asking.start()
        until(lambda: at.engine.stats().running)
        at.server.stop()
        refused = http.post("/v1/completions", json=LONG)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert http.get("/ready").status_code == 503
        asking.join()
        assert found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] == 150


def test_at_the_deadline_of_a_drain_every_client_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("deadline"), Limits(max_rows=1), drain_s=0.2) as at:
        ends: dict[str, str] = {}

        def ask(name: str, path: str, is_stream: bool) -> None:
            body = {**LONG, "n": 8, "stream": is_stream}
            ends[name] = at.http().post(path, json=body).text

        threads = [
            threading.Thread(target=ask, args=(str(stream), "/v1/completions", stream)) for stream in (True, False)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(at.engine.stats().running) == 1 and at.engine.stats().waiting == 15)
        at.server.stop()
        for thread in threads:
            thread.join(LONGEST_WAIT)
    error, done = [line for line in ends["True"].splitlines() if line][-2:]
    assert done == "data: [DONE]"
    for told in (json.loads(error.removeprefix("data: ")), json.loads(ends["False"])):
        assert told["error"]["type"] == "server_error" and told["error"]["code"] == "unavailable"
