"""Every error has its own row, and a failure of the server is told as one, wherever it happens."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from tiny_serve import make_tokenizer
from tiny_server import TEMPLATE, make_base

import polyvera
from polyvera import errors
from polyvera.engine.generation.generator import Generator
from polyvera.errors import EngineError, PolyveraError, ServeError
from polyvera.server.app import make_app
from polyvera.server.config import ServerConfig
from polyvera.server.error_response import TABLE, error_response
from polyvera.store.registry import Registry

SECRET = "CUDA error: out of memory at 0xdead"
BODY = {"model": "tiny", "prompt": "the", "max_tokens": 3}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the"}], "max_tokens": 3}


def subclasses(kind: type[PolyveraError]) -> Iterator[type[PolyveraError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from subclasses(one)


def own(kind: type[PolyveraError]) -> bool:
    return kind.__module__.startswith("polyvera")


def test_the_table_has_a_row_for_every_class_of_errors_and_no_other() -> None:
    for module in pkgutil.walk_packages(polyvera.__path__, "polyvera."):
        if not module.name.startswith(("polyvera.vllm", "polyvera.__main__", "polyvera.server.ray_serve")):
            importlib.import_module(module.name)
    assert set(TABLE) == {kind for kind in subclasses(PolyveraError) if own(kind)}


def test_every_class_of_errors_ends_in_error_and_stands_in_the_tree() -> None:
    names = [kind.__name__ for kind in subclasses(PolyveraError) if own(kind)]
    assert all(name.endswith("Error") for name in names)
    assert all(f"{name} " in f"{errors.__doc__} " or f"{name}\n" in str(errors.__doc__) for name in names)


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_a_status_says_whose_fault_it_is_and_hides_what_is_inside(kind: type[PolyveraError]) -> None:
    found = error_response(kind(SECRET), "id-1")
    assert found.status == TABLE[kind].status and set(found.body["error"]) == {"message", "type", "param", "code"}
    assert (found.type == "server_error") == (found.status >= 500)
    assert (SECRET not in found.message) == TABLE[kind].is_hidden
    assert ("id-1" in found.message) == (TABLE[kind].is_hidden and found.status >= 500)  # whom its log helps


def test_a_request_that_cannot_be_served_and_a_failed_engine_are_two_classes() -> None:
    assert not issubclass(EngineError, ServeError) and not issubclass(ServeError, EngineError)
    engine = [TABLE[kind].status for kind in subclasses(EngineError)]
    assert all(status >= 500 for status in engine)


def test_other_errors_are_the_servers_own_but_for_http_ones() -> None:
    assert error_response(HTTPException(418, "tea"), "").status == 418
    failed = error_response(RuntimeError(SECRET), "id-2")
    assert failed.status == 500 and SECRET not in failed.message and "id-2" in failed.message


def test_half_a_character_in_words_is_no_second_error() -> None:
    found = error_response(ServeError("\ud83d: unknown", "\ud83d"), "")
    assert json.loads(found.response().body)["error"]["message"] == "?: unknown"


def test_a_connection_that_starlette_closes_is_said_to_close() -> None:
    assert error_response(RuntimeError(SECRET), "").headers == {"Connection": "close"}


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_anthropics_clients_get_errors_in_their_shape(kind: type[PolyveraError]) -> None:
    found = error_response(kind(SECRET), "id-1")
    body = json.loads(found.response("/v1/messages/count_tokens").body)
    assert body["type"] == "error" and body["error"]["message"] == found.message
    assert body["error"]["type"] in (
        *("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large"),
        *("rate_limit_error", "api_error", "overloaded_error"),
    )
    assert json.loads(found.response("/v1/chat/completions").body) == found.body


def test_a_state_with_words_of_its_own_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error_response(errors.KeyFileError("keys.json cannot be read"), "a")
    error_response(ValueError(SECRET), "b")
    known, other = caplog.records
    assert "keys.json cannot be read" in known.getMessage() and known.exc_info is None
    assert SECRET in other.getMessage() and other.exc_info is not None


def test_a_model_that_is_not_there_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = error_response(errors.UnpublishedNameError("no adapter 'x' in s3://a; did you mean 'globex/secret'?"), "a")
    assert (found.status, found.message, found.param) == (404, "the model does not exist", "model")
    [line] = caplog.records
    assert line.levelname == "INFO" and "globex/secret" in line.getMessage()


def test_errors_say_when_to_try_again() -> None:
    assert error_response(errors.BusyError("later", 6.2), "").headers == {"Retry-After": "7"}
    assert "Retry-After" in error_response(errors.ClosedError("stopping"), "").headers
    assert error_response(errors.AccessError("who?"), "").headers == {"WWW-Authenticate": "Bearer"}


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[TestClient]:
    """A server whose model fails at every forward."""
    model, tokenizer = make_base(), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with Generator(model, tokenizer, Registry(tmp_path)) as engine:
        app = make_app(engine, ServerConfig(base="tiny"))
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError(SECRET)

            model.forward = fail  # type: ignore[assignment, method-assign]
            yield client


def counted(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('polyvera_refused_total{status="5'))


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
def test_a_failure_of_the_engine_is_a_5xx_and_counted_so(broken: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = broken.post(path, json=body)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert SECRET not in answer.text and counted(broken) == 1


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
def test_a_stream_reports_it_as_an_event(broken: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = broken.post(path, json={**body, "stream": True})
    *_, told, last = [line for line in answer.text.splitlines() if line]
    error = json.loads(told.removeprefix("data: "))["error"]
    assert error["type"] == "server_error" and SECRET not in answer.text and last == "data: [DONE]"
    assert counted(broken) == 1


def test_an_engine_that_has_ended_is_unavailable(broken: TestClient) -> None:
    statuses = [broken.post("/v1/completions", json=BODY).status_code for _ in range(6)]
    assert statuses[:3] == [500] * 3 and statuses[-1] == 503 and set(statuses) == {500, 503}
    assert broken.get("/health").status_code == 503
