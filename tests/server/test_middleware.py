"""Who passes, how much they may send, and how fast."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from polyvera.errors import DisconnectedError, KeyFileError, SizeError, SlowError
from polyvera.server.access_log import AccessRecord
from polyvera.server.api_keys import KeyFile
from polyvera.server.config import ServerConfig
from polyvera.server.json_lines import QueuedLines
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import AuthMiddleware, BoundedReceive, BoundedSend, ServerState, is_loopback


def client(
    config: ServerConfig, keys: KeyFile | None = None, state: ServerState | None = None, **more: Any
) -> TestClient:
    app = FastAPI()

    async def who(request: Request) -> dict[str, Any]:
        return {"tenant": request.state.caller.tenant, "bytes": len(await request.body())}

    for path in ("/v1/who", "/health", "/metrics", "/v1/adapters/x"):
        app.add_api_route(path, who, methods=["GET", "POST"])
    given = {"metrics": Metrics(), **more}
    app.add_middleware(AuthMiddleware, config=config, keys=keys, state=state or ServerState(), **given)
    return TestClient(app, base_url="http://localhost")


def test_a_key_says_who_calls(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secret, _ = keys.add("acme", ["acme/*"])
    http = client(ServerConfig("tiny", keys=keys.path), keys)
    assert http.get("/v1/who", headers={"Authorization": f"Bearer {secret}"}).json()["tenant"] == "acme"
    for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {secret}"}):
        answer = http.get("/v1/who", headers=header)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert len(answer.headers["x-request-id"]) == 32
    assert http.get("/health").status_code == 200 and http.get("/metrics").status_code == 401
    assert client(ServerConfig("tiny", keys=keys.path, is_metrics_open=True), keys).get("/metrics").status_code == 200


def test_an_open_server_answers_this_machine_alone() -> None:
    http = client(ServerConfig("tiny", hosts=("box.local",)))
    assert http.get("/v1/who").status_code == 200
    assert http.get("/v1/who", headers={"Host": "box.local"}).status_code == 200
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        assert http.get("/v1/who", headers=headers).status_code == 403


def test_a_stopping_server_takes_nothing_new_but_shows_its_metrics() -> None:
    http = client(ServerConfig("tiny"), state=ServerState(is_draining=True))
    assert http.get("/v1/who").status_code == 503 and http.get("/metrics").status_code == 200


def test_a_body_has_its_routes_limit() -> None:
    http = client(ServerConfig("tiny", max_body_bytes=10, max_upload_bytes=100))
    assert http.post("/v1/who", content=b"x" * 10).json()["bytes"] == 10
    assert http.post("/v1/who", content=b"x" * 11).status_code == 413
    assert http.post("/v1/adapters/x", content=b"x" * 100).status_code == 200
    assert http.post("/v1/adapters/x", content=b"x" * 101).status_code == 413


def test_receiving_is_bounded_in_bytes_and_in_time() -> None:
    async def chunks() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 6, "more_body": True}

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def run() -> None:
        receive = BoundedReceive(chunks, 10, 5.0)
        assert len((await receive())["body"]) == 6
        with pytest.raises(SizeError):
            await receive()
        with pytest.raises(SlowError, match=r"within 0\.01 s"):
            await BoundedReceive(never, 10, 0.01)()
        with pytest.raises(DisconnectedError):
            await BoundedReceive(gone, 10, 5.0)()

    asyncio.run(run())


def test_sending_is_bounded_in_time_and_names_the_request() -> None:
    sent: list[Any] = []
    record = AccessRecord("id-1", "GET", "/", "")

    async def send(message: Any) -> None:
        sent.append(message)

    async def stuck(message: Any) -> None:
        await asyncio.sleep(60)

    async def run() -> None:
        await BoundedSend(send, record, 5.0)({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(ConnectionError, match="id-1 did not read"):
            await BoundedSend(stuck, record, 0.01)({"type": "http.response.body"})

    asyncio.run(run())
    assert sent[0]["headers"] == [(b"x-request-id", b"id-1")]
    assert record.status == 200 and not record.is_whole


class Lines(QueuedLines):
    """Keeps them."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def put(self, row: Any) -> None:
        self.rows.append(row)


def test_every_request_is_counted_and_told_once_whoever_ends_it(tmp_path: Path) -> None:
    keys, lines, metrics = KeyFile(tmp_path / "keys.json"), Lines(), Metrics()
    secret, key = keys.add("acme", ["acme/*"])
    http = client(ServerConfig("tiny", keys=keys.path), keys, metrics=metrics, lines=lines)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    headers = {"Authorization": f"Bearer {secret}", "traceparent": trace, "x-request-id": "mine"}
    assert http.get("/v1/who?secret=1", headers=headers).status_code == 200
    assert http.get("/v1/nothing", headers={**headers, "traceparent": "x"}).status_code == 404
    assert http.get("/v1/who").status_code == 401
    assert [(row["path"], row["status"], row["tenant"]) for row in lines.rows] == [
        ("/v1/who", 200, "acme"),
        ("/v1/nothing", 404, "acme"),
        ("/v1/who", 401, ""),
    ]
    assert all(row["is_whole"] for row in lines.rows)
    assert (lines.rows[0]["id"], lines.rows[0]["key"], lines.rows[0]["traceparent"]) == ("mine", key.id, trace)
    assert "traceparent" not in lines.rows[1]
    text = metrics.text().decode()
    assert 'polyvera_requests_total{route="/v1/who",status="200"} 1.0' in text
    assert 'polyvera_requests_total{route="other",status="401"} 1.0' in text
    assert 'polyvera_refused_total{status="401"} 1.0' in text


def test_a_request_that_fails_within_is_told_as_such() -> None:
    lines, metrics = Lines(), Metrics()
    http = client(ServerConfig("tiny"), metrics=metrics, lines=lines)

    def fail() -> None:
        raise RuntimeError("a fault")

    http.app.add_api_route("/v1/fault", fail)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        http.get("/v1/fault")
    assert [(row["path"], row["status"], row["is_whole"]) for row in lines.rows] == [("/v1/fault", 500, False)]
    assert 'polyvera_requests_total{route="/v1/fault",status="500"} 1.0' in metrics.text().decode()


def test_a_reload_does_all_of_it_whatever_fails(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def fail() -> None:
        raise KeyFileError("the keys are broken")

    ServerState(reloads=[lambda: done.append(1), fail, lambda: done.append(2)]).reload()
    assert done == [1, 2] and "the keys are broken" in caplog.text


@pytest.mark.parametrize(("host", "is_own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("8.8.8.8", 0)])
def test_a_loopback_is_known(host: str, is_own: bool) -> None:
    assert is_loopback(host) == bool(is_own)


@pytest.mark.parametrize("length", ["²", "１", "-1", "1e3", "9" * 30, "", "0x10"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    scope: Any = {
        "type": "http",
        "path": "/v1/models",
        "headers": [(b"content-length", length.encode("latin-1", "ignore") or b""), (b"host", b"localhost")],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("it was let in")

    middleware = AuthMiddleware(app, ServerConfig(base="tiny"), None, ServerState(), Metrics())
    asyncio.run(middleware(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 400
