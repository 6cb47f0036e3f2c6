"""Texts that one caller asks about are one answer, in their order."""

from concurrent.futures import CancelledError

import pytest
import torch

from polyvera.engine.embedding.request import Classes, EncodeRequest
from polyvera.errors import EngineError
from polyvera.model.answer import Meaning
from polyvera.model.task import LABEL
from polyvera.store.reference import AdapterRef

REF = AdapterRef("a/b", 1, "", 0)


def request(is_classes: bool = False) -> EncodeRequest:
    return EncodeRequest([[1], [2, 3]], REF, "acme", is_classes)


def test_its_texts_know_it_and_wait_together() -> None:
    one, other = request(), request()
    first, second = one.texts()
    assert (first.tokens, second.num_tokens, first.adapter, second.tenant) == ([1], 2, REF, "acme")
    assert first.whole is second.whole is one and first.number == second.number == one.number != other.number


@pytest.mark.parametrize("is_classes", [False, True])
def test_the_result_is_in_the_order_of_the_texts(is_classes: bool) -> None:
    one = request(is_classes)
    one.meaning = Meaning(LABEL, ("x", "y"))
    one.found |= {1: torch.tensor([3.0, 4.0]), 0: torch.tensor([1.0, 2.0])}
    one.end()
    found = one.done.result(0)
    numbers = found.probs if isinstance(found, Classes) else found
    assert isinstance(found, Classes) == is_classes and numbers.tolist() == [[1.0, 2.0], [3.0, 4.0]] and one.is_over


def test_an_error_is_raised_and_a_caller_that_has_gone_is_left_alone() -> None:
    one, gone = request(), request()
    one.end(EngineError("why"))
    with pytest.raises(EngineError, match="why"):
        one.done.result(0)
    assert gone.done.cancel()
    gone.end(EngineError("why"))
    assert gone.is_over
    with pytest.raises(CancelledError):
        gone.done.result(0)
