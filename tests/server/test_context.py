"""What routes work with: an engine of one kind, counts of what is used, bodies that say what they are."""

import asyncio
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from tiny_encoder import make_bert
from tiny_serve import make_llama, make_tokenizer

from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.generation.generator import Generator
from polyvera.errors import ServeError
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.server.admission import Admission
from polyvera.server.api_keys import EVERYONE
from polyvera.server.app import make_app
from polyvera.server.catalog import Catalog
from polyvera.server.config import ServerConfig
from polyvera.server.context import ServerContext
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import ServerState
from polyvera.server.usage import UsageQuery


def context(engine: Any) -> ServerContext:
    return ServerContext(engine, ServerConfig("tiny"), Catalog(None, "tiny"), Metrics(), ServerState(), Admission(2))


def test_an_engine_serves_what_it_can_and_says_what_it_cannot() -> None:
    writes, reads = Generator(make_llama(), make_tokenizer()), Embedder(make_bert(), make_tokenizer())
    assert context(writes).generation is writes and context(reads).embedding is reads
    with pytest.raises(ServeError, match="tiny, an encoder: ask /v1/embeddings or /v1/classify"):
        _ = context(reads).generation
    with pytest.raises(ServeError, match=r"tiny, which answers /v1/completions.*such as LlamaForSequenceC"):
        _ = context(writes).embedding


def test_a_server_trains_where_it_was_told_to(tmp_path) -> None:
    own = context(Generator(make_llama(), make_tokenizer()))
    with pytest.raises(ServeError, match="start it with --train"):
        _ = own.training
    tuning = FineTuning.open(TrainingPolicy(folder=tmp_path))
    assert replace(own, fine_tuning=tuning).training is tuning


def test_what_is_used_is_in_the_metrics_and_in_the_usage() -> None:
    counted = context(Generator(make_llama(), make_tokenizer()))
    counted.count(EVERYONE, None, 5, 3)
    assert b'polyvera_tokens_total{adapter="base",kind="answer",tenant=""} 3.0' in counted.metrics.text()
    (row,) = counted.usage.rows(UsageQuery(None, groups=("tenant",)))
    assert row == {"tenant": "", "requests": 1, "prompt_tokens": 5, "completion_tokens": 3}


def test_an_answer_waits_for_no_body_that_is_read() -> None:
    own, may_end = context(Generator(make_llama(), make_tokenizer())), Event()
    request = Request({"type": "http", "state": {"caller": EVERYONE}})

    async def ask() -> bytes:
        reading = asyncio.create_task(own.computing.run(EVERYONE.tenant, may_end.wait))
        try:
            return bytes((await asyncio.wait_for(own.json(request, lambda: {"a": 1}), 10)).body)
        finally:
            may_end.set()
            await reading

    assert asyncio.run(ask()) == b'{"a":1}'


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json_is_refused(kind: str | None) -> None:
    with Generator(make_llama(), make_tokenizer()) as engine:
        client = TestClient(make_app(engine, ServerConfig("tiny")), base_url="http://localhost")
        headers = {} if kind is None else {"Content-Type": kind}
        answer = client.post("/v1/completions", content=b'{"model": "tiny", "prompt": "x"}', headers=headers)
        assert answer.status_code == 415 and "Content-Type: application/json" in answer.text
