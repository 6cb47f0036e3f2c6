"""Every text's vector and classes are those of its adapter alone, whatever else is in the batch."""

import random
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import (
    Alone,
    assert_classes,
    assert_nothing_is_left,
    assert_vectors,
    got,
    make_bert,
    make_encoder_adapter,
    texts,
)
from tiny_serve import LONGEST_WAIT, make_prompt, make_tokenizer, publish, until
from transformers import PreTrainedModel

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.limits import Limits
from polyvera.errors import (
    BusyError,
    ClosedError,
    EngineError,
    NonFiniteError,
    NotFoundError,
    PolyveraError,
    SamplingError,
    ServeError,
)
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

TOKENIZER = make_tokenizer()
COLOURS, MOODS, SIZES = ("red", "blue"), ("good", "bad", "mixed"), ("s", "m", "l", "xl", "xxl")
Store = tuple[Registry, list[AdapterRef], list[Adapter]]


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return make_bert()


@pytest.fixture(scope="module")
def alone(bert: PreTrainedModel) -> Alone:
    return Alone(bert)


@pytest.fixture(scope="module")
def store(bert: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Heads of two, three and five classes, and none; two of one layout; several methods."""
    specs = [AdapterSpec(rank=4, targets="all-linear", exclude=("classifier",)), AdapterSpec(rank=3)]
    labels: list[tuple[str, ...]] = [(), COLOURS, MOODS, MOODS, SIZES]
    made = [(specs[i % 2], i, own) for i, own in enumerate(labels)]
    made += [(AdapterSpec(name, rank=2), 9, MOODS if i % 2 else ()) for i, name in enumerate(METHODS)]
    adapters = [make_encoder_adapter(bert, *one) for one in made]
    return *publish(tmp_path_factory.mktemp("store"), adapters), adapters


@pytest.fixture
def encoder(bert: PreTrainedModel, store: Store) -> Iterator[Embedder]:
    with Embedder(bert, TOKENIZER, store[0], Limits(max_rows=8, chunk=128)) as encoder:
        yield encoder
        assert_nothing_is_left(encoder)
        assert encoder.failed is None


@pytest.mark.parametrize("num_slots", [3, 100])
def test_any_mix_gives_what_each_gives_alone(bert: PreTrainedModel, alone: Alone, store: Store, num_slots: int) -> None:
    registry, refs, adapters = store
    asked = [(which, is_classes) for which in range(-1, len(refs)) for is_classes in (False, True)]
    asked = [(w, c) for w, c in asked if not c or (w >= 0 and adapters[w].labels)]
    random.Random(0).shuffle(asked)
    with Embedder(bert, TOKENIZER, registry, Limits(max_rows=8, chunk=150, num_slots=num_slots)) as encoder:
        futures = []
        for i, (which, is_classes) in enumerate(asked):
            ask: Any = encoder.classify if is_classes else encoder.embed
            futures.append(ask(texts(i), refs[which] if which >= 0 else None, tenant=str(i % 3)))
        for i, ((which, is_classes), future) in enumerate(zip(asked, futures, strict=True)):
            adapter = adapters[which] if which >= 0 else None
            if is_classes:
                assert_classes(got(future), alone, adapter, texts(i))
            else:
                assert_vectors(got(future), alone, adapter, texts(i))
        totals = encoder.stats().totals
        assert totals["prompt_tokens"] == sum(len(row) for i in range(len(asked)) for row in texts(i))
        assert totals["steps"] < 2 * len(asked), "texts of several calls share a forward"
        assert (totals["evictions"] > 0) == (num_slots == 3)
        assert len({r.adapter for r in encoder.stats().resident}) == min(num_slots, len(refs))
        assert_nothing_is_left(encoder)


def test_adapters_differ_and_the_base_is_the_bare_model_bit_for_bit(encoder: Embedder, store: Store) -> None:
    row = make_prompt(3, 30, 30)
    for ref in store[1]:
        encoder.preload(ref)
    vectors = [got(encoder.embed([row], ref))[0] for ref in (None, *store[1])]
    assert min(float((a - b).abs().max()) for i, a in enumerate(vectors) for b in vectors[:i]) > 1e-3
    with torch.no_grad():
        hidden = make_bert().base_model(torch.tensor([row]), attention_mask=torch.ones(1, 30)).last_hidden_state
    assert torch.equal(vectors[0], torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0])


def test_a_large_call_is_split_and_a_small_one_of_another_tenant_passes_it(encoder: Embedder, alone: Alone) -> None:
    order: list[str] = []
    many = [make_prompt(i, 5, 20) for i in range(500)]
    large = encoder.embed(many, tenant="large")
    large.add_done_callback(lambda _: order.append("large"))
    small = encoder.embed(many[:2], tenant="small")
    small.add_done_callback(lambda _: order.append("small"))
    assert_vectors(got(large)[::50], alone, None, many[::50])
    assert_vectors(got(small), alone, None, many[:2])
    assert order == ["small", "large"]


def test_classes_need_a_head(bert: PreTrainedModel, encoder: Embedder, store: Store, alone: Alone) -> None:
    _, refs, adapters = store
    with pytest.raises(ServeError, match="the base model has no trained head.*name an adapter"):
        encoder.classify([[5]])
    good = encoder.classify(texts(1), refs[2])
    with pytest.raises(ServeError, match=r"team/a0@1 has no head for classes, and the base model has none either"):
        got(encoder.classify(texts(1), refs[0]))
    assert_classes(got(good), alone, adapters[2], texts(1))


def test_texts_that_no_step_could_answer_are_refused(encoder: Embedder) -> None:
    assert encoder.max_context == 64
    for rows, message in (
        ([], "0 texts were given"),
        ([[5], []], "text 2 has no tokens"),
        ([[5] * 65], "text 1 has 65 tokens, more than the 64 that this model reads"),
        ([[5], [len(TOKENIZER)]], f"text 2 has a token that is not from 0 to {len(TOKENIZER) - 1}"),
        ([[5]] * 2049, "2049 texts were given: a request has from 1 to 2,048"),
    ):
        with pytest.raises(SamplingError, match=message):
            encoder.embed(rows)
        with pytest.raises(PolyveraError):
            encoder.classify(rows)
    assert len(got(encoder.embed([[5] * 64]))) == 1


def broken(adapter: Adapter, letter: str) -> Adapter:
    """Its numbers of one letter, or of its head, are infinite."""
    flat = adapter.flat.clone()
    for key, entry in adapter.layout.entries.items():
        if entry.letter == letter or (letter == "head" and not entry.letter and key.endswith("weight")):
            flat[entry.offset : entry.offset + entry.size] = torch.inf
    return replace(adapter, flat=flat)


@pytest.mark.parametrize("letter", ["d", "b", "head"])
def test_numbers_that_are_not_finite_reach_no_other_text(
    bert: PreTrainedModel, alone: Alone, tmp_path: Path, letter: str
) -> None:
    spec = AdapterSpec(rank=4)
    good = [make_encoder_adapter(bert, spec, seed, MOODS) for seed in range(2)]
    registry, refs = publish(tmp_path, [*good])
    bad = registry.put("team/bad", good[0])  # what the store refuses, a slot may still come to hold
    with Embedder(bert, TOKENIZER, registry, Limits(max_rows=16)) as encoder:
        for ref in (*refs, bad):
            encoder.preload(ref)
        adapters = encoder._adapters
        entry = adapters._entries[bad.name, bad.version]
        entry.bank.put(entry.slot, broken(good[0], letter))
        for _ in range(5):
            futures = [encoder.classify(texts(i), (refs[0], bad, refs[1])[i % 3]) for i in range(9)]
            base = encoder.embed(texts(1))
            for i, future in enumerate(futures):
                if i % 3 == 1:
                    with pytest.raises(NonFiniteError, match="NaN or inf"):
                        got(future)
                else:
                    assert_classes(got(future), alone, good[i % 3 // 2], texts(i))
            assert_vectors(got(base), alone, None, texts(1))
        assert encoder.failed is None


def test_a_call_that_has_failed_is_not_computed_on(alone: Alone) -> None:
    bert = make_bert()
    with torch.no_grad():
        bert.base_model.embeddings.word_embeddings.weight[9] = torch.nan
    with Embedder(bert, TOKENIZER, limits=Limits(max_rows=4, chunk=60)) as encoder:
        with pytest.raises(NonFiniteError, match="NaN or inf"):
            got(encoder.embed([[9], [5] * 60, *[[5] * 50] * 100]))
        assert_nothing_is_left(encoder)
        assert encoder.stats().totals["steps"] == 1, "neither in the same step nor later"
        assert_vectors(got(encoder.embed([[5] * 60])), alone, None, [[5] * 60])


def test_failed_loads_are_told_and_others_are_unharmed(
    bert: PreTrainedModel, alone: Alone, store: Store, tmp_path: Path
) -> None:
    registry, refs = publish(tmp_path, store[2][:2])
    damaged = registry.put("team/damaged", store[2][1])
    file = next(p for p in tmp_path.rglob("*") if p.is_file() and "damaged" in str(p) and p.suffix == ".safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    foreign = registry.put("team/foreign", replace(store[2][1], base="0" * 16 + "-" + "0" * 16))
    missing = replace(refs[0], name="team/none")
    with Embedder(bert, TOKENIZER, registry) as encoder:
        futures = [(encoder.embed(texts(1), ref), ref) for ref in (refs[0], damaged, foreign, missing, refs[1], None)]
        for future, ref in futures:
            if ref in (damaged, foreign, missing):
                with pytest.raises(PolyveraError):
                    got(future)
            else:
                adapter = None if ref is None else store[2][refs.index(ref)]
                assert_vectors(got(future), alone, adapter, texts(1))
        with pytest.raises(NotFoundError):
            got(encoder.classify(texts(1), missing))
        assert encoder.stats().totals["failed_loads"] >= 3
        assert_nothing_is_left(encoder)


def test_adapters_leave_and_stay(bert: PreTrainedModel, alone: Alone, store: Store) -> None:
    registry, refs, adapters = store
    with Embedder(bert, TOKENIZER, registry, Limits(max_rows=2, num_slots=2)) as encoder:
        encoder.pin(refs[2])
        long = encoder.embed([make_prompt(i, 5, 20) for i in range(300)], refs[0])
        until(lambda: encoder.stats().totals["steps"] > 0)
        encoder.evict(refs[0])
        with pytest.raises(BusyError, match="every slot is in use or pinned"):
            encoder.preload(refs[4], timeout_s=0.01)
        assert_vectors(got(long)[:3], alone, adapters[0], [make_prompt(i, 5, 20) for i in range(3)])
        for i in (3, 4, 1):
            assert_classes(got(encoder.classify(texts(i), refs[i])), alone, adapters[i], texts(i))
        names = [one.adapter for one in encoder.stats().resident]
        assert str(refs[2]) in names and str(refs[0]) not in names
        encoder.unpin(refs[2])
        for i in (0, 1):
            got(encoder.embed(texts(1), refs[i]))
        assert str(refs[2]) not in [one.adapter for one in encoder.stats().resident]
        assert_nothing_is_left(encoder)


def test_too_many_wait_and_a_cancelled_call_is_freed(bert: PreTrainedModel, store: Store) -> None:
    many = [make_prompt(i, 40, 60) for i in range(2000)]
    with Embedder(bert, TOKENIZER, store[0], Limits(max_rows=1, num_slots=1, max_waiting=2)) as encoder:
        first = encoder.embed(many, store[1][0])
        until(lambda: encoder._queue.num_waiting == 0 and encoder.stats().running)
        waiting = [encoder.embed(texts(1), store[1][1]) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait already"):
            encoder.embed(texts(1))
        assert waiting[0].cancel() and first.cancel()
        assert len(got(waiting[1])) == 3
        assert_nothing_is_left(encoder)
        assert encoder.stats().totals["steps"] < 2000
        with pytest.raises(CancelledError):
            first.result(0)


def test_a_drained_encoder_ends_what_it_has_and_a_stopped_one_tells(bert: PreTrainedModel) -> None:
    encoder = Embedder(bert, TOKENIZER, limits=Limits(max_rows=2))
    with pytest.raises(ClosedError):
        encoder.embed([[5]])
    assert encoder.stats().num_slots == 1024
    before = [p.requires_grad for p in bert.parameters()], list(dict(bert.named_modules()))
    with encoder:
        with pytest.raises(ServeError, match="belongs to another engine"):
            Embedder(bert, TOKENIZER).start()
        future = encoder.embed([[5]] * 100)
        assert encoder.drain(LONGEST_WAIT) and len(future.result(0)) == 100
        with pytest.raises(ClosedError):
            encoder.embed([[5]])
    with Embedder(bert, TOKENIZER, limits=Limits(max_rows=1)) as second:
        futures = [second.embed([[5] * 60] * 500) for _ in range(4)]
    with pytest.raises(ClosedError):
        got(futures[-1])
    assert ([p.requires_grad for p in bert.parameters()], list(dict(bert.named_modules()))) == before
    assert not bert.base_model._forward_hooks


def test_an_error_of_its_own_is_told_and_several_end_it(bert: PreTrainedModel, alone: Alone) -> None:
    with Embedder(bert, TOKENIZER) as encoder:
        times = [1]

        def fail(*_: object) -> None:
            if times[0]:
                times[0] -= 1
                raise RuntimeError("a fault of the device")

        hook = bert.base_model.embeddings.register_forward_pre_hook(fail)
        try:
            with pytest.raises(EngineError, match="a step of the engine failed"):
                got(encoder.embed(texts(1)))
            assert_vectors(got(encoder.embed(texts(1))), alone, None, texts(1))
            times[0] = 3
            for _ in range(3):
                with pytest.raises(EngineError):
                    got(encoder.embed(texts(1)))
            until(lambda: encoder.failed is not None)
            with pytest.raises(ClosedError):
                encoder.embed(texts(1))
        finally:
            hook.remove()
