"""A frozen head is the same wherever it is made, sharp as it says, of no stored bytes, and goes wherever one goes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import make_classifier, make_tokenizer
from torch.nn import functional as F

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, head_tensors, load
from polyvera.adapter.spec import FROZEN_HEADS, AdapterSpec
from polyvera.data.tables import read
from polyvera.errors import LayoutError, RecipeError, SpecError, TargetError
from polyvera.evaluate.evaluate import evaluate
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.config import set_labels
from polyvera.model.frozen_head import HEADS, SHARPNESS, LabelReader, made_head, with_head
from polyvera.model.load import Base
from polyvera.store.file.codec import read_header
from polyvera.store.registry import Registry
from polyvera.train.fleet.journal import FINISHED, SKIPPED
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows
from polyvera.train.trainer import train

NAMES = ("w3", "w_5")


@pytest.fixture
def named() -> Base:
    """A classifier whose classes are words that the tokenizer knows."""
    model = make_classifier()
    set_labels(model.config, NAMES)
    return Base(model, make_tokenizer())


@pytest.fixture
def words(jsonl: Callable[..., str]) -> str:
    return jsonl([{"text": f"w{i % 7} w{20 + i % 5}", "label": NAMES[i % 2]} for i in range(24)], "words.jsonl")


def recipe(data: str, word: str, **more: object) -> Recipe:
    own = {"model": "tiny", "rank": 4, "lr": 0.05, "max_steps": 4, "batch_size": 4, "seed": 3, **more}
    return Recipe(data=data, head=(word,), **own)  # type: ignore[arg-type]


def reader_of(base: Base) -> LabelReader:
    return LabelReader(base.model, base.tokenizer)


@pytest.mark.parametrize("word", HEADS)
def test_its_logits_are_centred_on_the_names_and_as_sharp_as_it_says(named: Base, word: str) -> None:
    made = made_head(word, 3, NAMES, reader_of(named))
    again = made_head(word, 3, NAMES, reader_of(Base(make_classifier(), make_tokenizer())))
    assert all(torch.equal(made[key], again[key]) for key in made)
    read_ = reader_of(named).read(NAMES)
    logits = F.linear(read_, made["classifier.weight"], made["classifier.bias"])
    assert torch.allclose(logits.mean(0), torch.zeros(2), atol=1e-4 * SHARPNESS)
    size = made["classifier.weight"].norm(dim=1) * (read_ - read_.mean(0)).norm(dim=1).mean()
    assert size.tolist() == pytest.approx([SHARPNESS] * 2, rel=1e-4)


def test_the_table_has_a_row_for_each_word() -> None:
    assert tuple(HEADS) == FROZEN_HEADS
    with pytest.raises(SpecError, match="made .* or trained"):
        AdapterSpec(head=("labels", "classifier"))


def test_a_misspelt_word_is_told_the_right_one(named: Base) -> None:
    with pytest.raises(TargetError, match="did you mean 'labels'"):
        head_tensors(named.model, ("lables",))


def test_what_cannot_be_made_is_refused(base: Base, named: Base, words: str) -> None:
    with pytest.raises(RecipeError, match="alike"):
        made_head("labels", 0, ("even", "odd"), reader_of(named))  # no words of the tokenizer's
    with pytest.raises(RecipeError, match="has no head to freeze"):
        made_head("random", 0, NAMES, reader_of(base))
    with pytest.raises(RecipeError, match="has no head that is trained"):
        train(recipe(words, "labels", head_lr=0.1), base=named, progress=False)


@pytest.mark.parametrize("word", HEADS)
def test_it_trains_is_stored_in_no_bytes_and_answers_the_same_again(
    named: Base, words: str, tmp_path: Path, word: str
) -> None:
    before = named.model.classifier.weight.clone()
    result = train(recipe(words, word, test=words), base=named, progress=False)
    assert torch.equal(before, named.model.classifier.weight)
    registry = Registry(tmp_path / "store")
    ref = registry.put("a", trained := adapter_of(result.adapter))
    assert read_header(registry.read_file(ref)).index.data_bytes == 4 * trained.num_params == 4 * result.num_trained
    assert not any("classifier" in key for key in trained.tensors)
    stored = registry.get(ref)
    with pytest.raises(LayoutError, match="is made by the base"):
        load(named.model, stored)
    whole = with_head(stored, reader_of(named))
    assert with_head(whole, reader_of(named)) is whole and "classifier.weight" in whole.tensors
    (slot,) = load(named.model, whole)
    found = evaluate(named.model, named.tokenizer, read(words), slot).scores
    eject(named.model)
    assert found == {name: result.scores[name] for name in found}
    assert next(iter(fleet_scores(named, {"a": stored}, {"a": read(words)}))).scores == found


def test_a_fleet_shares_one_head_where_its_labels_allow(named: Base, words: str, jsonl: Callable[..., str]) -> None:
    other = jsonl([{"text": f"w{i % 7}", "label": ("w8", "w9")[i % 2]} for i in range(24)], "other.jsonl")
    everyone = [Tenant(name, TenantRows(data)) for name, data in (("a", words), ("b", other))]
    found = {
        word: train_fleet(recipe(words, word, fleet=True), everyone=everyone, base=named, tell=lambda line: None)
        for word in HEADS
    }
    assert [outcome.name for outcome in found["random"].of(FINISHED)] == ["a", "b"]
    (skipped,) = found["labels"].of(SKIPPED)
    assert skipped.name == "b" and "take head='random'" in skipped.problem
    alone = train(recipe(words, "random"), base=named, progress=False)
    mine = next(o.adapter for o in found["random"].of(FINISHED) if o.name == "a")
    assert torch.allclose(adapter_of(mine).flat, adapter_of(alone.adapter).flat, atol=1e-5)


def adapter_of(adapter: Adapter | None) -> Adapter:
    assert adapter is not None
    return replace(adapter, base="")
