"""The answers of one request come part by part or whole, and what is left at the end is cancelled."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tiny_serve import Solo, assert_nothing_is_left, make_tokenizer, until
from tiny_server import make_base

from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import RequestOutput, SamplingParams
from polyvera.errors import BusyError, ClosedError, SamplingError
from polyvera.server import answers
from polyvera.server.admission import Admission
from polyvera.server.answers import AnswerStream, while_there
from polyvera.server.api_keys import Caller
from polyvera.server.catalog import Catalog
from polyvera.server.config import ServerConfig
from polyvera.server.context import ServerContext
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import ServerState

ACME = Caller("acme", ("acme/*",), base=True, admin=False)
SHORT, LONG = SamplingParams(max_tokens=6), SamplingParams(max_tokens=100, ignore_eos=True)
PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Generator]:
    with Generator(make_base(), make_tokenizer()) as engine:
        yield engine
        assert_nothing_is_left(engine)


@pytest.fixture
def context(engine: Generator) -> ServerContext:
    config = ServerConfig("tiny", max_queued=4)
    return ServerContext(engine, config, Catalog(None, "tiny"), Metrics(), ServerState(), Admission(4, max_waiting=1))


@asynccontextmanager
async def started(context: ServerContext, *params: SamplingParams) -> AsyncIterator[AnswerStream]:
    with AnswerStream(context, context.generation, ACME) as stream:
        await stream.reserve(len(PROMPTS) * len(params))
        await stream.start(PROMPTS, None, params)
        yield stream


class Client:
    """A request of a client that goes when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 60))  # type: ignore[arg-type]


def test_a_whole_is_the_parts_joined_and_those_of_the_model(context: ServerContext) -> None:
    solo = Solo(make_base())

    async def go() -> None:
        async with started(context, SHORT) as stream:
            whole = await stream.whole(Client())  # type: ignore[arg-type]
        async with started(context, SHORT) as stream:
            texts = ["", ""]
            async for i, output in stream.parts():
                texts[i] += output.text
        assert [one.text for one in whole] == texts
        assert [one.ids for one in whole] == [solo.answers(None, prompt, 6) for prompt in PROMPTS]
        assert (stream.num_prompt_tokens, stream.num_answer_tokens) == (5, sum(len(one.ids) for one in whole))

    run(go)
    assert b'polyvera_tokens_total{adapter="base",kind="prompt",tenant="acme"} 10.0' in context.metrics.text()
    assert not context.admission._tenants


def test_what_is_left_is_cancelled_and_its_quota_given_back(engine: Generator, context: ServerContext) -> None:
    async def go() -> None:
        async with started(context, LONG, LONG) as stream:
            with pytest.raises(BusyError, match="4 answers are under way"):
                async with started(context, SHORT):
                    pass
            await anext(aiter(stream.parts()))
        assert not context.admission._tenants

    run(go)
    until(lambda: not engine.stats().running)
    assert b'polyvera_answers_total{adapter="base",finish="cancelled",tenant="acme"} 4.0' in context.metrics.text()


def test_a_client_that_goes_ends_it(engine: Generator, context: ServerContext) -> None:
    async def go() -> None:
        client = Client()
        async with started(context, LONG) as stream:
            client.gone.set()
            with pytest.raises(ClosedError, match="the client has gone"):
                await stream.whole(client)  # type: ignore[arg-type]

    run(go)
    until(lambda: not engine.stats().running)


def test_parts_that_nobody_fetches_end_it(context: ServerContext) -> None:
    async def go() -> None:
        async with started(context, LONG) as stream:
            while not all(request.finished for request in stream.requests):
                await asyncio.sleep(0.005)
            with pytest.raises(ClosedError, match="its parts were not fetched"):
                async for _ in stream.parts():
                    pass
            assert stream.num_answer_tokens < 200

    run(go)


def test_a_refusal_is_raised_and_leaves_nothing(context: ServerContext) -> None:
    async def go() -> None:
        with pytest.raises(SamplingError, match="context"):
            async with started(context, SHORT, SamplingParams(max_tokens=10_000)):
                pass

    run(go)
    assert not context.admission._tenants


def test_while_there_gives_what_came_and_raises_what_failed() -> None:
    async def fail() -> int:
        raise SamplingError("no")

    async def go() -> None:
        assert await while_there(Client(), asyncio.sleep(0, 7)) == 7  # type: ignore[arg-type]
        with pytest.raises(SamplingError):
            await while_there(Client(), fail())  # type: ignore[arg-type]

    run(go)


def test_what_fails_after_its_client_has_gone_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise SamplingError("no") from None
        return 0

    async def go() -> None:
        client = Client()
        client.gone.set()
        with pytest.raises(ClosedError, match="the client has gone"):
            await while_there(client, fail())  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        gc.collect()

    run(go)
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_silence_is_told_while_nothing_else_comes(context: ServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PING_S", 0.05)

    async def go() -> None:
        with AnswerStream(context, context.generation, ACME) as stream:
            stream._num_left = 1
            stream.ping()
            assert [await anext(aiter(stream.parts())) for _ in range(2)] == [(answers.SILENCE, RequestOutput())] * 2
        await asyncio.sleep(0.15)
        assert stream._parts.empty(), "it ends with the stream"

    run(go)
