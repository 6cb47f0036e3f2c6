"""Both kinds of engine start, drain, fail and stop in the same way."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import make_bert, make_encoder_adapter
from tiny_serve import LONGEST_WAIT, make_adapter, make_llama, make_tokenizer, publish, until

from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.lifecycle import AdapterEngine
from polyvera.engine.limits import Limits
from polyvera.errors import BusyError, ClosedError, EngineError, NotFoundError
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

Ask = Callable[[Any, AdapterRef | None], Future[Any]]
KINDS: dict[str, tuple[Any, Any, Any, Ask]] = {
    "generator": (
        Generator,
        make_llama,
        make_adapter,
        lambda e, ref: e.answer([5, 6], ref, SamplingParams(max_tokens=3)),
    ),
    "embedder": (Embedder, make_bert, make_encoder_adapter, lambda e, ref: e.embed([[5, 6]], ref)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Registry, list[AdapterRef], Ask]:
    """Makes engines of one kind, over a store of three adapters."""
    engine, model, adapter, ask = KINDS[request.param]
    base = model()
    registry, refs = publish(tmp_path, [adapter(base, AdapterSpec(rank=2), seed) for seed in range(3)])
    return lambda limits=None: engine(base, make_tokenizer(), registry, limits), registry, refs, ask


def test_an_engine_runs_once(kind: Any) -> None:
    make, _, _, ask = kind
    engine: AdapterEngine[Any] = make()
    for _ in range(2):
        with pytest.raises(ClosedError):
            ask(engine, None)
        assert engine.drain(0.1) and engine.stats().num_slots == 1024
        engine.stop()
    with engine:
        assert ask(engine, None).result(LONGEST_WAIT) is not None
    for _ in range(2):
        engine.stop()
    with pytest.raises(ClosedError, match="make a new one"):
        engine.start()
    assert engine.failed is None and engine.fingerprint == fingerprint(engine.model)


def test_adapters_are_preloaded_pinned_and_evicted(kind: Any) -> None:
    make, _, refs, ask = kind
    with make(Limits(num_slots=2)) as engine:
        engine.preload(refs[0])
        engine.pin(refs[1])
        engine.preload(refs[2])
        resident = {one.adapter: one.is_pinned for one in engine.stats().resident}
        assert resident == {str(refs[2]): False, str(refs[1]): True}
        engine.pin(refs[2])
        with pytest.raises(BusyError, match="every slot is in use or pinned"):
            engine.preload(refs[0], timeout_s=0.05)
        engine.unpin(refs[2])
        engine.preload(refs[0])
        engine.evict(refs[1])
        until(lambda: str(refs[1]) not in {one.adapter for one in engine.stats().resident})
        with pytest.raises(NotFoundError):
            engine.preload(AdapterRef("team/none", 1, "", 0))
        assert ask(engine, refs[1]).result(LONGEST_WAIT) is not None


def test_a_drain_takes_no_more_and_lets_what_runs_end(kind: Any) -> None:
    make, _, refs, ask = kind
    with make(Limits(max_rows=1)) as engine:
        asked = [ask(engine, refs[i % 3]) for i in range(5)]
        assert engine.drain(LONGEST_WAIT) and all(one.done() for one in asked)
        for late in (lambda: ask(engine, None), lambda: engine.preload(refs[0])):
            with pytest.raises(ClosedError):
                late()


def test_what_is_left_at_a_stop_is_cancelled(kind: Any) -> None:
    make, _, _, ask = kind
    engine = make(Limits(max_rows=1)).start()
    asked = [ask(engine, None) for _ in range(200)]
    engine.stop()
    errors = {type(one.exception(LONGEST_WAIT)) for one in asked}
    assert errors <= {ClosedError, type(None)} and engine.stats().running == ()


def test_an_engine_that_fails_again_and_again_ends_and_says_why(kind: Any) -> None:
    make, _, refs, ask = kind
    with make() as engine:

        def fail(*_: object) -> None:
            raise RuntimeError("a fault of the device")

        hook = engine.model.get_input_embeddings().register_forward_pre_hook(fail)
        errors = [ask(engine, None).exception(LONGEST_WAIT) for _ in range(3)]
        until(lambda: engine.failed)
        hook.remove()
        assert all(type(error) is EngineError and "device" not in str(error) for error in errors)
        assert isinstance(engine.failed, RuntimeError) and engine.drain(LONGEST_WAIT)
        with pytest.raises(ClosedError):
            engine.preload(refs[0])
