"""A fingerprint names the frozen weights: equal for copies in another dtype, another where a weight is another."""

import copy

import pytest
import torch

from polyvera.adapter.fingerprint import agrees, check_fingerprint, fingerprint
from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FingerprintError


def moved(model, name):
    """A copy with another number in one parameter."""
    other = copy.deepcopy(model)
    other.get_parameter(name).data.view(-1)[0] += 1
    return other


def linear_and_norm(model):
    """The names of a linear weight and of a norm's."""
    names = [name for name, _ in model.named_parameters()]
    linear = next(n for n in names if n.endswith(("q_proj.weight", "query.weight", "c_attn.weight")))
    return linear, next(n for n in names if "norm" in n.lower() or "ln_" in n)


def test_it_is_the_same_for_a_copy_in_bf16_and_back(model):
    low = copy.deepcopy(model).to(torch.bfloat16)
    assert fingerprint(model) == fingerprint(low) == fingerprint(low.float())


def test_each_part_names_its_own_weights(model):
    linear, norm = linear_and_norm(model)
    dense, whole = fingerprint(model).split("-")
    assert len(dense) == len(whole) == 16
    assert [x == y for x, y in zip(fingerprint(moved(model, linear)).split("-"), (dense, whole))] == [True, False]
    assert [x == y for x, y in zip(fingerprint(moved(model, norm)).split("-"), (dense, whole))] == [False, True]


def test_adapters_and_heads_do_not_count(model, small_bert):
    before = fingerprint(model)
    inject(model, AdapterSpec(rank=2))
    assert fingerprint(model) == before
    assert fingerprint(moved(small_bert, "classifier.weight")) == fingerprint(small_bert)


@pytest.mark.parametrize(
    ("adapter", "model", "same"),
    [("a-b", "a-b", True), ("a-b", "a-", True), ("", "a-b", True), ("a-b", "a-c", False), ("a-b", "c-", False)],
)
def test_an_unknown_part_agrees_with_any(adapter, model, same):
    assert agrees(adapter, model) == agrees(model, adapter) == same


def test_another_base_is_refused_by_both_names():
    check_fingerprint("one-two", "one-")
    with pytest.raises(FingerprintError, match=r"one-two.*one-three"):
        check_fingerprint("one-two", "one-three")
