"""Limits are numbers that can be, and the engine fills those that are missing."""

from typing import Any

import pytest
from tiny_encoder import make_bert
from tiny_serve import make_llama, make_tokenizer

from polyvera.engine.lifecycle import DefaultLimits
from polyvera.engine.limits import Limits
from polyvera.errors import ServeError

DEFAULTS = DefaultLimits(context=100, cpu_chunk=7, gpu_chunk=70)


@pytest.mark.parametrize(
    "given",
    [{"max_rows": 0}, {"max_waiting": 0}, {"num_slots": 0}, {"slot_bytes": 0}, {"host_bytes": 0}, {"chunk": -1}]
    + [{"max_context": 0}, {"prefix_bytes": -1}],
    ids=str,
)
def test_a_limit_that_cannot_be_is_refused_by_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ServeError, match=f"{name}=-?[01]: must be greater than or equal to"):
        Limits(**given)


def test_none_is_the_engines_choice_and_no_prefixes_are_allowed() -> None:
    assert Limits().max_context is None and Limits(prefix_bytes=0).prefix_bytes == 0


@pytest.mark.parametrize(
    ("given", "model_reads", "filled"), [(None, 160, 100), (None, 64, 64), (30, 64, 30), (160, 160, 160)]
)
def test_what_is_missing_comes_from_the_model_and_the_defaults(
    given: int | None, model_reads: int, filled: int
) -> None:
    found = DEFAULTS.filled(Limits(max_context=given), make_llama(model_reads), make_tokenizer())
    assert (found.max_context, found.chunk) == (filled, 7)
    assert DEFAULTS.filled(Limits(chunk=3), make_llama(model_reads), make_tokenizer()).chunk == 3


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ServeError, match="max_context=65: BertForSequenceClassification reads at most 64"):
        DEFAULTS.filled(Limits(max_context=65), make_bert(), make_tokenizer())
