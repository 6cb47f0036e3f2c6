"""Every field of every body has a bound, and neither side of it costs the others anything."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from tiny_serve import assert_nothing_is_left, until
from tiny_server import Served

from polyvera.server import job_requests, json_body, requests
from polyvera.server.fields import LogitBias, Prompt, several
from polyvera.server.message_body import MessageBody
from polyvera.server.request_body import RequestBody
from polyvera.server.response_body import ResponseBody
from polyvera.server.routes.tinker import bodies as tinker_bodies
from polyvera.server.score_bodies import RerankBody, ScoreBody

ROUTES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/completions": (requests.CompletionBody, {"model": "tiny", "prompt": "the", "max_tokens": 1}),
    "/v1/chat/completions": (
        requests.ChatBody,
        {"model": "tiny", "messages": [{"role": "user", "content": "the"}], "max_tokens": 1},
    ),
    "/v1/responses": (ResponseBody, {"model": "tiny", "input": "the", "max_output_tokens": 1}),
    "/v1/messages": (
        MessageBody,
        {"model": "tiny", "messages": [{"role": "user", "content": "the"}], "max_tokens": 1},
    ),
    "/v1/score": (ScoreBody, {"model": "tiny", "text_1": "the", "text_2": "the"}),
    "/v1/rerank": (RerankBody, {"model": "tiny", "query": "the", "documents": ["the"]}),
    "/tokenize": (requests.TokenizeBody, {"prompt": "the"}),
    "/detokenize": (requests.DetokenizeBody, {"tokens": [5]}),
    "/v1/embeddings": (requests.EmbeddingBody, {"model": "tiny", "input": "the"}),
    "/v1/classify": (requests.ClassifyBody, {"model": "tiny", "input": "the"}),
    "/v1/load_lora_adapter": (requests.LoadBody, {"lora_name": "acme/new", "lora_path": "nothing"}),
    "/v1/unload_lora_adapter": (requests.UnloadBody, {"lora_name": "acme/new"}),
    "/v1/aliases": (requests.AliasBody, {"name": "acme/one", "alias": "live"}),
}
VECTORS = ("/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank")  # an encoder's, which this server is not
HEALTH_S = 0.1  # above its idle time
IDLE_S, PAUSE_S = 0.5, 0.005
TRIES = 5  # a machine that does other work stalls now and then; a value that stalls the server does so every time
MAX_BODY = 1 << 20
assert job_requests and tinker_bodies  # whose bodies are among the subclasses


def ends(schema: dict[str, Any], defs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(largest legal, smallest illegal) by each bound of a field; raises where it has none."""
    if "$ref" in schema:
        return
    arms = schema.get("anyOf") or schema.get("oneOf")
    if arms:
        for arm in arms:
            yield from ends(arm, defs)
        return
    if "enum" in schema or "const" in schema or schema.get("type") in ("boolean", "null"):
        if schema["type"] != "null":
            yield (schema.get("enum") or [schema.get("const", True)])[0], "no such value"
        return
    kind, step = schema["type"], 1 if schema["type"] == "integer" else 0.5
    if kind in ("integer", "number"):
        low = schema["minimum"] if "minimum" in schema else schema["exclusiveMinimum"] + 0.5
        least = low - step if "minimum" in schema else schema["exclusiveMinimum"]
        yield schema["maximum"], schema["maximum"] + step
        yield low, least
    elif kind == "string":
        yield "a" * schema["maxLength"], "a" * (schema["maxLength"] + 1)
    elif kind == "array":
        item = next((large for large, _ in ends(schema["items"], defs)), {"role": "user", "content": "a"})
        item = item if not isinstance(item, str | list) else item[:1]
        yield [item] * schema["maxItems"], [item] * (schema["maxItems"] + 1)
    elif kind == "object":
        most = schema["maxProperties"]
        yield {str(i): 1 for i in range(most)}, {str(i): 1 for i in range(most + 1)}


def every_end() -> Iterator[tuple[str, str, Any, bool]]:
    """(route, field, value, whether its schema takes it) for every end of every field."""
    for route, (kind, _) in ROUTES.items():
        schema = kind.model_json_schema(by_alias=True)
        for field, one in schema["properties"].items():
            for legal, illegal in ends(one, schema.get("$defs", {})):
                yield route, field, legal, True
                yield route, field, illegal, False


def test_every_field_of_every_body_has_a_bound() -> None:
    fields = {(route, field) for route, field, _, _ in every_end()}
    chats = ("/v1/completions", "/v1/chat/completions")
    nested = {
        (route, field) for route in chats for field in ("stream_options", "response_format", "structured_outputs")
    }
    nested |= {("/v1/responses", "text"), ("/v1/messages", "tool_choice")}
    every = {(route, field) for route, (kind, _) in ROUTES.items() for field in kind.model_fields}
    assert every - fields == nested
    for kind in (requests.JsonSchema, requests.ResponseFormat, requests.StreamOptions, requests.ChatMessage):
        schema = kind.model_json_schema(by_alias=True)
        for one in schema["properties"].values():
            list(ends(one, schema.get("$defs", {})))


def kinds_of(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in kind.__subclasses__():
        yield one
        yield from kinds_of(one)


def unions(schema: Any) -> Iterator[list[Any]]:
    """The arms of each union that pydantic would choose from by trying, but for null."""
    if isinstance(schema, dict):
        yield [arm for arm in schema.get("anyOf", []) if arm.get("type") != "null"]
        schema = list(schema.values())
    for one in schema if isinstance(schema, list) else ():
        yield from unions(one)


@pytest.mark.parametrize("kind", kinds_of(RequestBody), ids=lambda kind: kind.__name__)
def test_of_a_union_one_arm_alone_is_tried_and_told(kind: type[BaseModel]) -> None:
    assert all(len(arms) < 2 for arms in unions(kind.model_json_schema(by_alias=True)))


class HealthWatch:
    """Asks /health again and again on a connection of its own, and keeps how long each answer took."""

    def __init__(self, at: Served) -> None:
        self._at, self._done = at, threading.Event()
        self._waits: list[tuple[float, float]] = []  # when it was asked, and answered
        self._thread = threading.Thread(target=self._watch)

    def longest(self, since: float) -> float:
        """The longest wait that ended after a moment, and at least one that began after it."""
        asked = time.monotonic()
        until(lambda: self._waits and self._waits[-1][0] > asked)
        return max(end - begun for begun, end in self._waits if end > since)

    def idle(self) -> float:
        """The longest wait of IDLE_S without work."""
        since = time.monotonic()
        time.sleep(IDLE_S)
        return self.longest(since)

    def __enter__(self) -> "HealthWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        with self._at.http() as http:
            while not self._done.wait(PAUSE_S):
                begun = time.monotonic()
                assert http.get("/health").status_code == 200
                self._waits.append((begun, time.monotonic()))


def stall(watch: HealthWatch, idle: float, ask: Callable[[], object]) -> float:
    """How much longer than idle /health waits while something is asked: the least of several tries."""
    least = float("inf")
    for _ in range(TRIES):
        since = time.monotonic()
        ask()
        least = min(least, watch.longest(since) - idle)
        if least < HEALTH_S:
            break
        idle = watch.idle()
    return least


def test_both_sides_of_every_bound_are_answered_while_health_is(at: Served) -> None:
    with HealthWatch(at) as watch, at.http() as http:
        idle = watch.idle()
        for route, field, value, is_legal in every_end():
            content = json.dumps({**ROUTES[route][1], field: value}).encode()  # its time is the client's
            ask = partial(http.post, route, content=content, headers={"content-type": "application/json"})
            answer = ask()
            assert answer.status_code < 500, (route, field, answer.text[:200])
            if not is_legal:
                assert answer.status_code in (400, 413), (route, field, str(value)[:40], answer.text[:200])
                assert answer.status_code == 413 or answer.json()["error"]["param"] == field or route in VECTORS
            assert stall(watch, idle, ask) < HEALTH_S, (route, field, str(value)[:40])
    assert_nothing_is_left(at.engine)


def test_a_stall_is_seen(at: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on the event loop is a stall at every try."""
    read = json_body.read_body

    def slowly(*given: Any) -> Any:
        time.sleep(HEALTH_S * 2)
        return read(*given)

    monkeypatch.setattr("polyvera.server.context.read_body", slowly)
    with HealthWatch(at) as watch, at.http() as http:
        assert stall(watch, watch.idle(), lambda: http.post("/tokenize", json={"prompt": "x"})) > HEALTH_S


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1_000_000_000},
        {"prompt": [[1]] * 200_000},
        {"prompt": ["ab"] * 60_000},
        {"prompt": "a" * 1_000_000},
        {"prompt": [5] * 300_000},
        {"logit_bias": {str(i): 0.1 for i in range(40_000)}},
        {"stop": ["a"] * 100_000},
        {f"unknown{i}": 1 for i in range(50_000)},
    ],
    ids=["n", "lists", "texts", "long", "tokens", "bias", "stop", "unknown"],
)
def test_what_is_too_much_is_refused_before_it_is_done(at: Served, body: dict[str, Any]) -> None:
    answer = at.http().post("/v1/completions", json={**ROUTES["/v1/completions"][1], **body})
    assert answer.status_code == 400 and len(answer.text) < 2000
    field = next(iter(body))
    assert answer.json()["error"]["param"] in (field, None) or field.startswith("unknown")


@pytest.mark.parametrize("value", ["a", ["a"], [1, 2], [[1], [2, 3]], []])
def test_a_prompt_is_one_of_four_kinds(value: Any) -> None:
    assert TypeAdapter(Prompt).validate_python(value, strict=True) == value


@pytest.mark.parametrize("value", [1, {}, [True], [1, "a"], ["a", 1], [[1], "a"], [[[1]]], None])
def test_and_of_no_other(value: Any) -> None:
    with pytest.raises(ValueError):
        TypeAdapter(Prompt).validate_python(value, strict=True)


def test_the_tokens_of_a_bias_are_numbers() -> None:
    assert TypeAdapter(LogitBias).validate_python({"5": 1.5, "7": -100}, strict=True) == {5: 1.5, 7: -100}
    for bad in ({"a": 1}, {"-1": 1}, {"5": 101}, {"99999999999999999999": 1}, {"²": 1}):
        with pytest.raises(ValueError):
            TypeAdapter(LogitBias).validate_python(bad, strict=True)


def test_one_prompt_is_several() -> None:
    assert several("a") == ["a"] and several([1, 2]) == [[1, 2]] and several([]) == []
