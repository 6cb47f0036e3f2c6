"""A frozen head gives logits of a known size, centred on what it reads, the same each time."""

import copy

import pytest
import torch
from tiny_models import make_classifier, make_tokenizer

from polyvera.data.tables import read
from polyvera.errors import RecipeError
from polyvera.model.config import set_labels
from polyvera.model.load import Base
from polyvera.train.frozen_head import SHARPNESS, _last_linear, _read_by, freeze_head
from polyvera.train.preparation import encode_tables
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tables


@pytest.fixture
def classifier() -> Base:
    """Whose classes are words that the tokenizer knows."""
    model = make_classifier()
    set_labels(model.config, ("w3", "w_5"))
    return Base(model, make_tokenizer())


def test_its_logits_are_centred_and_as_sharp_as_it_says(classifier: Base, classes: str) -> None:
    rows = encode_tables(Recipe(model="tiny", data=classes), Tables(read(classes), None, None), classifier)[0].rows
    twin = Base(copy.deepcopy(classifier.model), classifier.tokenizer)
    freeze_head(classifier, rows)
    freeze_head(twin, rows)
    head = _last_linear(classifier)
    with torch.no_grad():
        logits = head(_read_by(head, classifier, rows))
    assert torch.allclose(logits.mean(0), torch.zeros(logits.shape[1]), atol=1e-4 * SHARPNESS)
    read_ = _read_by(head, classifier, rows)
    size = head.weight.norm(dim=1) * (read_ - read_.mean(0)).norm(dim=1).mean()
    assert size.tolist() == pytest.approx([SHARPNESS] * len(head.weight), rel=1e-4)
    assert torch.equal(head.weight, _last_linear(twin).weight)


def test_names_that_are_read_alike_are_refused(classifier: Base, classes: str) -> None:
    rows = encode_tables(Recipe(model="tiny", data=classes), Tables(read(classes), None, None), classifier)[0].rows
    set_labels(classifier.model.config, ("even", "odd"))  # no words of the tokenizer's
    with pytest.raises(RecipeError, match="alike"):
        freeze_head(classifier, rows)


def test_a_model_without_a_head_is_refused(base: Base) -> None:
    with pytest.raises(RecipeError, match="has no head to freeze"):
        freeze_head(base, [])
