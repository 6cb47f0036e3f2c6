"""Adapters come and go: slots, pins, evictions, versions; requests finish with the version that they began with."""

import copy
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from tiny_serve import (
    LONGEST_WAIT,
    Heard,
    Solo,
    all_of,
    assert_nothing_is_left,
    make_adapter,
    make_prompt,
    publish,
    submit,
    until,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import BusyError, ClosedError, LayoutError
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

LONG = SamplingParams(max_tokens=140, ignore_eos=True)
SHORT = SamplingParams(max_tokens=6)
NO_END = 10_000  # a token that there is not
PROMPT = make_prompt(1, 10, 10)
Store = tuple[Registry, list[AdapterRef], list[Adapter]]


@pytest.fixture(scope="module")
def store(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five adapters of one layout and one of another."""
    specs = [AdapterSpec(rank=4, targets="all-linear")] * 5 + [AdapterSpec(rank=3)]
    adapters = [make_adapter(llama, spec, seed) for seed, spec in enumerate(specs)]
    return *publish(tmp_path_factory.mktemp("store"), adapters), adapters


@pytest.fixture
def engine(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store) -> Iterator[Generator]:
    with Generator(llama, tokenizer, store[0], Limits(max_rows=8, num_slots=2)) as engine:
        yield engine
        assert engine.failed is None


def names(engine: Generator) -> list[str]:
    return [resident.adapter.rpartition("/")[2] for resident in engine.stats().resident]


def begun(engine: Generator, ref: AdapterRef) -> tuple[Request, Heard]:
    request, heard = submit(engine, PROMPT, ref, LONG)
    until(lambda: heard.ids)
    return request, heard


def answered(engine: Generator, ref: AdapterRef) -> list[int]:
    return engine.answer(PROMPT, ref, SHORT).result(LONGEST_WAIT).ids


def test_the_longest_unused_goes(engine: Generator, store: Store) -> None:
    _, refs, adapters = store
    for ref in refs[:2]:
        engine.preload(ref)
    assert names(engine) == ["a1@1", "a0@1"]
    engine.preload(refs[0])
    engine.preload(refs[2])
    assert names(engine) == ["a2@1", "a0@1"]
    engine.preload(refs[5])  # of another layout: its own slots, the same count
    assert names(engine) == ["a5@1", "a2@1"]
    totals = engine.stats().totals
    assert (totals["loads"], totals["evictions"], totals["hits"]) == (4, 2, 1)
    assert engine.stats().resident[1] == ResidentAdapter("team/a2@1", adapters[2].num_params * 4, 0, False)


def test_a_pinned_adapter_stays_and_another_waits_until_it_is_let_go(
    engine: Generator, store: Store, solo: Solo
) -> None:
    _, refs, adapters = store
    engine.pin(refs[0])
    for ref in refs[1:4]:
        assert answered(engine, ref) == solo.answers(adapters[refs.index(ref)], PROMPT, 6)
        assert "a0@1" in names(engine)
    engine.pin(refs[1])
    waiting = engine.answer(PROMPT, refs[2], SHORT)
    assert answered(engine, refs[0]) == solo.answers(adapters[0], PROMPT, 6)  # others go on
    with pytest.raises(BusyError, match="a3@1 is not resident after 0.05 s: every slot is in use or pinned"):
        engine.preload(refs[3], timeout_s=0.05)
    assert not waiting.done() and sorted(names(engine)) == ["a0@1", "a1@1"]
    engine.unpin(refs[1])
    assert waiting.result(LONGEST_WAIT).ids == solo.answers(adapters[2], PROMPT, 6)
    assert sorted(names(engine)) == ["a0@1", "a2@1"]
    assert_nothing_is_left(engine)


def test_requests_for_more_adapters_than_slots_wait_their_turn(engine: Generator, store: Store, solo: Solo) -> None:
    _, refs, adapters = store
    running = [begun(engine, ref) for ref in refs[:2]]
    waiting = [engine.answer(PROMPT, ref, SHORT) for ref in refs[2:]]
    base = engine.answer(PROMPT, None, SHORT)
    assert base.result(LONGEST_WAIT).ids == solo.answers(None, PROMPT, 6)
    assert not any(future.done() for future in waiting) and engine.stats().waiting == 4
    engine.cancel(running[0][0])
    for adapter, answer in zip(adapters[2:], all_of(waiting), strict=True):
        assert answer.ids == solo.answers(adapter, PROMPT, 6)
    running[1][1].wait()
    assert_nothing_is_left(engine)


def test_rows_of_an_evicted_adapter_finish_with_it(engine: Generator, store: Store, solo: Solo) -> None:
    _, refs, adapters = store
    _, heard = begun(engine, refs[0])
    engine.evict(refs[0])
    assert answered(engine, refs[0]) == solo.answers(adapters[0], PROMPT, 6)  # a second copy beside the first
    engine.evict(refs[0])
    engine.evict(refs[4])  # which is not there
    assert answered(engine, refs[1]) == solo.answers(adapters[1], PROMPT, 6)
    assert [r.num_users for r in engine.stats().resident] == [1, 0]
    heard.wait()
    assert heard.ids == solo.answers(adapters[0], PROMPT, 140, eos_token_id=NO_END)
    assert_nothing_is_left(engine)
    assert names(engine) == ["a1@1"]


def test_a_version_that_is_removed_while_in_use_is_finished_with(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store, solo: Solo, tmp_path: Path
) -> None:
    _, _, adapters = store
    registry, (old,) = publish(tmp_path, adapters[:1])
    registry.alias(old.name, "prod", 1)
    with Generator(llama, tokenizer, registry, Limits(num_slots=1)) as engine:
        _, heard = begun(engine, registry.resolve(f"{old.name}@prod"))
        new = registry.put(old.name, adapters[1], alias="prod")
        registry.remove(old)
        engine.evict(old)
        moved = registry.resolve(f"{old.name}@prod")
        assert moved.version == new.version == 2
        future = engine.answer(PROMPT, moved, SHORT)
        assert future.result(LONGEST_WAIT).ids == solo.answers(adapters[1], PROMPT, 6)
        heard.wait()
        assert heard.ids == solo.answers(adapters[0], PROMPT, 140, eos_token_id=NO_END)
        assert_nothing_is_left(engine)


def test_a_host_cache_of_one_adapter_is_enough(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store, solo: Solo
) -> None:
    registry, refs, adapters = store
    with Generator(llama, tokenizer, registry, Limits(num_slots=2, host_bytes=1)) as engine:
        futures = [engine.answer(PROMPT, refs[i % 6], SHORT) for i in range(18)]
        for i, answer in enumerate(all_of(futures)):
            assert answer.ids == solo.answers(adapters[i % 6], PROMPT, 6)
        assert len(engine._adapters._host) == 1
        assert_nothing_is_left(engine)


def test_slots_of_one_layout_are_bounded_in_bytes(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store, solo: Solo
) -> None:
    registry, refs, adapters = store
    row_bytes = adapters[0].num_params * 4
    with Generator(llama, tokenizer, registry, Limits(slot_bytes=2 * row_bytes)) as engine:
        for i in (0, 1, 2, 5, 3):
            assert answered(engine, refs[i]) == solo.answers(adapters[i], PROMPT, 6)
        assert names(engine) == ["a3@1", "a5@1", "a2@1"]
    with Generator(llama, tokenizer, registry, Limits(slot_bytes=row_bytes - 1)) as engine:
        with pytest.raises(LayoutError, match=r"slot_bytes is"):
            engine.preload(refs[0])
        engine.preload(refs[5])
        assert answered(engine, refs[5]) == solo.answers(adapters[5], PROMPT, 6)


@pytest.mark.parametrize("name", METHODS)
def test_a_base_in_low_precision_holds_its_adapters_in_it(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    adapter = make_adapter(llama, AdapterSpec(name, rank=4), 0, size=0.05)
    registry, (ref,) = publish(tmp_path, [adapter])
    model = copy.deepcopy(llama).bfloat16()
    with Generator(model, tokenizer, registry) as engine:
        assert len(answered(engine, ref)) > 0
        (bank,) = engine._adapters.banks
        assert bank.dtype == torch.bfloat16 and engine.stats().resident[0].num_bytes == adapter.num_params * 2
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_load_that_is_waited_for_ends_with_the_engine(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store
) -> None:
    registry, refs, _ = store
    with Generator(llama, tokenizer, registry, Limits(num_slots=1)) as engine:
        engine.pin(refs[0])
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                engine.preload(refs[1], timeout_s=LONGEST_WAIT)
            except ClosedError as error:
                raised.append(error)

        thread = Thread(target=wait)
        thread.start()
        until(lambda: engine._queue._jobs)
    thread.join(LONGEST_WAIT / 2)
    assert not thread.is_alive() and len(raised) == 1


def test_a_new_adapter_is_read_from_its_submission_on_beside_the_step_under_way(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: Store, solo: Solo
) -> None:
    registry, refs, adapters = store
    entered, gate = Event(), Event()

    def stand() -> None:
        entered.set()
        gate.wait(LONGEST_WAIT)

    with Generator(llama, tokenizer, registry, Limits(num_slots=8)) as engine:
        _, heard = submit(engine, PROMPT, None, LONG)
        until(lambda: heard.ids)
        try:
            engine._queue.do(stand)  # a step that does not end
            assert entered.wait(LONGEST_WAIT)
            answers = [engine.answer(PROMPT, ref, SHORT) for ref in refs[:3]]
            until(lambda: engine._adapters._loader._done.qsize() == 3)
        finally:
            gate.set()
        for adapter, answer in zip(adapters, all_of(answers), strict=False):
            assert answer.ids == solo.answers(adapter, PROMPT, 6)
        heard.wait()
        assert heard.ids == solo.answers(None, PROMPT, 140, eos_token_id=NO_END)
        assert engine.stats().totals["loads"] == 3
