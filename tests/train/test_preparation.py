"""preparation: what a run needs before its first step, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from tiny_models import make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import banks_of
from polyvera.data.tables import read
from polyvera.errors import DataError, RecipeError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.config import CAUSAL_LM, CLASSIFICATION, kind_of, labels_of
from polyvera.model.load import Base, load_base
from polyvera.model.task import LABEL
from polyvera.train.preparation import MAX_LENGTH, adapted, class_names, encode_tables, read_tables, row_length
from polyvera.train.recipe import Recipe

Write = Callable[..., str]
LOADED = {name: family for name, family in FAMILIES.items() if family.kind in (CAUSAL_LM, CLASSIFICATION)}


def recipe(data: str, **choices: Any) -> Recipe:
    return Recipe(**{"model": "tiny", "data": data, "rank": 2, "targets": "all-linear", **choices})


def base_of(family: Family, folder: str, labels: tuple[str, ...] = ()) -> Base:
    model = family.make()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_base(folder, task=LABEL if family.kind != CAUSAL_LM else "lm", labels=labels)


def test_the_length_of_a_row_is_the_recipes_or_what_the_model_reads() -> None:
    assert row_length(recipe("d"), None) == row_length(recipe("d"), 9999) == MAX_LENGTH
    assert row_length(recipe("d"), 32) == 32
    assert row_length(recipe("d", max_length=20), 32) == row_length(recipe("d", max_length=20), None) == 20
    with pytest.raises(RecipeError, match="max_length=33 is more than the 32 tokens that tiny reads"):
        row_length(recipe("d", max_length=33), 32)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "distilbert", "albert", "bert", "gpt2 classifier"])
def test_long_texts_are_cut_to_what_the_model_reads_in_training_and_evaluation(
    name: str, jsonl: Write, tmp_path: Any
) -> None:
    rows = [{"text": " ".join(f"w{(i + j) % 30}" for j in range(60)), "label": "ab"[i % 2]} for i in range(4)]
    given = recipe(jsonl(rows))
    base = base_of(FAMILIES[name], str(tmp_path / "model"), labels=("a", "b"))
    tables = read_tables(given)
    encoded, _ = encode_tables(given, tables.labelled(class_names(base, tables.training)), base)
    assert set(encoded.lengths) == {FAMILIES[name].length} and encoded.shortened == (1, 2, 3, 4)
    with adapted(given, base):
        ids = torch.tensor([row["input_ids"] for row in encoded.rows])
        base.model(input_ids=ids, labels=torch.tensor([row["labels"] for row in encoded.rows])).loss.backward()
        assert len(evaluate(base.model, base.tokenizer, tables.training).answers) == 4


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_a_classifier_without_a_known_length_reads_whole_texts(name: str, jsonl: Write, tmp_path: Any) -> None:
    rows = [{"text": " ".join(f"w{j % 30}" for j in range(30 + i)), "label": "ab"[i % 2]} for i in range(4)]
    folder = str(tmp_path / "model")
    FAMILIES[name].make().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    base = load_base(folder, task=LABEL, labels=("a", "b"))
    found = evaluate(base.model, base.tokenizer, read(jsonl(rows)))
    assert set(found.answers) <= {"a", "b"}


@pytest.mark.parametrize("name", LOADED)
def test_every_family_takes_a_bank_and_gives_it_back(name: str, jsonl: Write, tmp_path: Any) -> None:
    base = base_of(LOADED[name], str(tmp_path / "model"))
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    with adapted(recipe(jsonl([{"text": "w1"}])), base, 3) as bank:
        assert bank is not None and len(bank.slots) == 3 and any(p.requires_grad for p in base.model.parameters())
    assert not banks_of(base.model) and not base.model.training
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("pad", ["w39", "</s>", "<unk>"])
def test_a_decoders_classes_do_not_depend_on_the_batch(pad: str, jsonl: Write, tmp_path: Any) -> None:
    rows = [
        {"text": " ".join(f"w{(3 * i + j) % 30}" for j in range(1 + i % 9)), "label": "ab"[i % 2]} for i in range(24)
    ]
    family, folder = FAMILIES["llama classifier"], str(tmp_path / "model")
    torch.manual_seed(0)
    family.make().save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    base, table = load_base(folder, task=LABEL, labels=("a", "b")), read(jsonl(rows))
    answers = {evaluate(base.model, base.tokenizer, table, batch_size=size).answers for size in (1, 3, 8)}
    assert len(answers) == 1 and len(set(*answers)) == 2


def test_classes_are_in_the_order_of_the_outputs(classes: str) -> None:
    table = read(classes)
    base = Base(make_classifier(2), make_tokenizer())
    assert class_names(base, table) == labels_of(base.model.config) == ("even", "odd")
    base.model.config.id2label = {1: "even", 0: "odd"}
    assert class_names(base, table) == ("odd", "even")
    with pytest.raises(RecipeError, match="has the classes even, odd, and the model's outputs are"):
        class_names(Base(make_classifier(3), make_tokenizer()), table)


def test_a_token_without_an_embedding_is_refused_by_its_row(jsonl: Write) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = [{"prompt": "w1", "completion": "w2"}, {"prompt": "w1 <new>", "completion": "w2"}]
    given = recipe(jsonl(rows))
    base = Base(make_model(), tokenizer)
    assert kind_of(base.model) == CAUSAL_LM
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: the token '<new>' \(47\) has no embedding in the model"):
        encode_tables(given, read_tables(given), base)
    with pytest.raises(DataError, match="row 2: the token '<new>'"):
        evaluate(base.model, tokenizer, read(given.data))


@pytest.mark.parametrize(
    ("is_labelled", "choices", "problem"),
    [
        (True, {"too_long": "skip"}, r"too_long='skip' has no effect: the rows of .* have no answers to be too long"),
        (False, {"head": ("labels",)}, r"head='labels' has no effect: the rows of .* have no labels for a head"),
        (False, {"head": ("random",)}, r"head='random' has no effect"),
    ],
)
def test_a_choice_for_rows_of_another_kind_is_refused(
    is_labelled: bool, choices: dict[str, Any], problem: str, jsonl: Write
) -> None:
    row = {"text": "w1", "label": "a"} if is_labelled else {"prompt": "w1", "completion": "w2"}
    rows = [row, {**row, "label": "b"} if is_labelled else row] * 2
    recipe = Recipe(model="tiny", data=jsonl(rows), **choices)
    base = Base(make_classifier() if is_labelled else make_model(), make_tokenizer())
    with pytest.raises(RecipeError, match=problem):
        encode_tables(recipe, read_tables(recipe), base)
