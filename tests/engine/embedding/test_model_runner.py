"""Which encoders are held, that they are held rightly, and whose heads fit them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_encoder import LIKE_BERT, Alone, assert_classes, assert_vectors, got, make_bert, make_encoder_adapter, texts
from tiny_serve import make_tokenizer, publish
from transformers import BertModel

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import inject, load
from polyvera.adapter.spec import FROZEN_HEADS, AdapterSpec
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.factory import engine_for
from polyvera.errors import LayoutError, ServeError
from polyvera.model.frozen_head import LabelReader, with_head
from polyvera.model.load import AUTO_TASK, Base, load_base
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

TOKENIZER = make_tokenizer()
COLOURS, MOODS, SIZES = ("red", "blue"), ("good", "bad", "mixed"), ("s", "m", "l", "xl", "xxl")


def test_a_base_with_a_head_of_its_own_answers_with_it(tmp_path: Path) -> None:
    adapters = [make_encoder_adapter(make_bert(), AdapterSpec(rank=4), i, own) for i, own in enumerate([(), MOODS])]
    registry, refs = publish(tmp_path / "store", adapters)
    make_bert(5).save_pretrained(tmp_path / "own")
    own = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "own")
    alone = Alone(own)
    with Embedder(own, TOKENIZER, registry) as encoder:
        base, headless, three = (encoder.classify(texts(1), ref) for ref in (None, *refs))
        assert got(base).labels == got(headless).labels == tuple(f"LABEL_{i}" for i in range(5))
        assert_classes(got(three), alone, adapters[1], texts(1))
        found = [got(base).probs, got(headless).probs]
    for probs, adapter in zip(found, (None, adapters[0]), strict=True):
        expected = torch.stack([alone.probs(adapter, row) for row in texts(1)])  # type: ignore[arg-type]
        torch.testing.assert_close(probs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("word", FROZEN_HEADS)
def test_a_head_that_is_made_is_made_at_load(tmp_path: Path, word: str) -> None:
    trained = make_encoder_adapter(make_bert(), AdapterSpec(rank=4, head=(word,)), 1)
    adapter = replace(trained, labels=("w1", "w2 w3", "w4"))
    registry, (ref,) = publish(tmp_path / "store", [adapter])
    base = make_bert()
    alone = Alone(base)
    whole = with_head(adapter, LabelReader(base, TOKENIZER))
    with Embedder(base, TOKENIZER, registry) as encoder:
        assert_classes(got(encoder.classify(texts(1), ref)), alone, whole, texts(1))


def beheaded(adapter: Adapter, **changed: Any) -> Adapter:
    """Another head in place of its own."""
    head = tuple(sorted((dict(adapter.layout.head) | changed).items()))
    layout = replace(adapter.layout, head=tuple((k, s) for k, s in head if s is not None))
    owners = tuple(sorted({key.rpartition(".")[0] for key, _ in layout.head}))
    spec = replace(adapter.spec, head=owners)
    return replace(adapter, spec=spec, layout=layout, flat=torch.zeros(layout.num_params))


@pytest.mark.parametrize(
    ("changed", "labels", "message"),
    [
        ({"classifier.bias": (2,)}, MOODS, "for 2 and for 3 classes"),
        ({"classifier.bias": None}, MOODS, "only part of a head: classifier.bias is missing"),
        ({"classifier.weight": (3, 16)}, MOODS, r"has classifier.weight of shape \(3, 16\)"),
        ({"classifier.weight": (1, 32), "classifier.bias": (1,)}, MOODS[:1], "a head of 1 classes"),
        ({"pooler.weight": (3, 32)}, MOODS, "no such module"),
        ({}, COLOURS, "a head of 3 classes, but 2 labels"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    changed: dict[str, Any], labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    bert = make_bert()
    good = make_encoder_adapter(bert, AdapterSpec(rank=4), 1, MOODS)
    registry, refs = publish(tmp_path, [good, replace(beheaded(good, **changed), labels=labels)])
    alone = Alone(bert)
    with Embedder(bert, TOKENIZER, registry) as encoder:
        other = encoder.classify(texts(1), refs[0])
        with pytest.raises(LayoutError, match=message):
            got(encoder.classify(texts(1), refs[1]))
        with pytest.raises(LayoutError, match=message):
            got(encoder.embed(texts(1), refs[1]))
        assert_classes(got(other), alone, good, texts(1))
        assert encoder.failed is None


LIKE_DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "initializer_range": 0.25}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("RobertaConfig", {**LIKE_BERT, "max_position_embeddings": 67}),
        ("DistilBertConfig", {**LIKE_DISTILBERT, "vocab_size": len(TOKENIZER), "max_position_embeddings": 64}),
        ("ElectraConfig", {**LIKE_BERT, "embedding_size": 16}),
        ("MPNetConfig", {**LIKE_BERT, "max_position_embeddings": 66}),
        ("ModernBertConfig", {**LIKE_BERT, "cls_token_id": 0, "sep_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}),
        ("DebertaV2Config", {**LIKE_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ],
)
def test_encoders_of_many_families_answer_as_alone(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**(given | {"pad_token_id": 2}))
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    adapters = [make_encoder_adapter(model, AdapterSpec(rank=4), i, own) for i, own in enumerate([(), MOODS, SIZES])]
    registry, refs = publish(tmp_path, adapters)
    alone = Alone(model)
    with Embedder(model, TOKENIZER, registry) as encoder:
        assert encoder.max_context == 64
        vectors = [encoder.embed(texts(1), ref) for ref in (None, *refs)]
        classes = [encoder.classify(texts(1), ref) for ref in refs[1:]]
        for adapter, found in zip((None, *adapters), vectors, strict=True):
            assert_vectors(got(found), alone, adapter, texts(1))
        for adapter, each in zip(adapters[1:], classes, strict=True):
            assert_classes(got(each), alone, adapter, texts(1))
        got(encoder.embed([[5] * 64]))


def test_a_bare_backbone_gives_vectors_alone(tmp_path: Path) -> None:
    bare = make_bert(kind=BertModel)
    adapter = make_encoder_adapter(bare, AdapterSpec(rank=4), 1)
    registry, (ref,) = publish(tmp_path, [adapter])
    alone = Alone(bare)
    with Embedder(bare, TOKENIZER, registry) as encoder:
        assert_vectors(got(encoder.embed(texts(1), ref)), alone, adapter, texts(1))
        with pytest.raises(ServeError, match="no head for classes"):
            got(encoder.classify(texts(1), ref))


def test_the_engine_is_chosen_by_the_model(llama: Any) -> None:
    bert = make_bert()
    assert type(engine_for(Base(bert, TOKENIZER))) is Embedder
    assert type(engine_for(Base(llama, TOKENIZER))).__name__ == "Generator"
    with pytest.raises(ServeError, match="generates text: a Generator serves it"):
        Embedder(llama, TOKENIZER).start()
    with pytest.raises(ServeError, match=r"eject\(model\) first"):
        held = make_bert()
        inject(held, AdapterSpec(rank=2))
        Embedder(held, TOKENIZER).start()
    assert fingerprint(bert) == fingerprint(make_bert(7))


def test_what_was_trained_is_served_as_it_was_evaluated(tmp_path: Path) -> None:
    make_bert(kind=BertModel).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    rows, registry, expected = ["in the tree", "true", "err the thing"], Registry(tmp_path / "store"), {}
    for labels in (COLOURS, MOODS):
        lines = [json.dumps({"text": f"{word} {i}", "label": word}) for i in range(4) for word in labels]
        data = tmp_path / f"{len(labels)}.jsonl"
        data.write_text("\n".join(lines))
        recipe = Recipe(model=str(tmp_path / "base"), data=str(data), rank=4, max_steps=4, batch_size=4)
        result = train(recipe, progress=False)
        assert result.adapter is not None
        ref = registry.put(f"team/{len(labels)}", result.adapter)
        load(result.base.model, result.adapter)
        with torch.no_grad():
            logits = [result.base.model(**TOKENIZER(row, return_tensors="pt")).logits[0] for row in rows]
        expected[ref] = result.labels, torch.softmax(torch.stack(logits), -1)
    base = load_base(str(tmp_path / "base"), task=AUTO_TASK)
    ids = [TOKENIZER(row).input_ids for row in rows]
    with Embedder(base.model, base.tokenizer, registry) as encoder:
        futures = {ref: encoder.classify(ids, ref) for ref in expected}
        for ref, (labels, probs) in expected.items():
            assert got(futures[ref]).labels == labels
            torch.testing.assert_close(got(futures[ref]).probs, probs, atol=1e-5, rtol=0)
