"""Every message comes back from JSON as it was, and what is none is refused by name."""

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from polyvera import errors
from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.embedding.request import Classes
from polyvera.engine.generation.request import SamplingParams, Token
from polyvera.engine.limits import Limits
from polyvera.engine.stats import RunningRequest
from polyvera.errors import BusyError, EngineError, FormatError, PolyveraError, SamplingError
from polyvera.model.pooling import Pooling
from polyvera.replicas import messages
from polyvera.replicas.messages import FROM_REPLICA, TO_REPLICA, Fault, fault_of, read, written
from polyvera.store.reference import AdapterRef

REF = AdapterRef("acme/one", 3, "/store/\u2603 '\"\n", 100, "ab")
MESSAGES: list[tuple[Any, TypeAdapter[Any]]] = [
    (messages.Start("m", None, Limits(max_context=7), 3, "cuda:1"), TO_REPLICA),
    (messages.Submit(1, (1, 2), REF, SamplingParams(seed=2**64 - 1, bias=((3, 1.0),)), "acme \u2603\0"), TO_REPLICA),
    (messages.Encode(1, ((1, 2), (3,)), REF, "acme", True), TO_REPLICA),
    (messages.Cancel(2), TO_REPLICA),
    (messages.Command(3, "pin", REF, 1.5), TO_REPLICA),
    (messages.GetStats(4), TO_REPLICA),
    (messages.Ready("a-b", "bfloat16", 300, Limits(), Pooling("cls", False)), FROM_REPLICA),
    (messages.Fatal(Fault("OSError", "x")), FROM_REPLICA),
    (messages.Accepted(2, Fault("BusyError", "later", 3.0)), FROM_REPLICA),
    (messages.Delta(1, (Token(5, -1.5, ((1, float("-inf")),)),), "\u2603", "stop", None, 4), FROM_REPLICA),
    (messages.EncodeDone(1, ("a", "b"), 2, bytes(range(256)), Fault("NonFiniteError", "x")), FROM_REPLICA),
    (messages.CommandDone(3, Fault("NotFoundError", "gone")), FROM_REPLICA),
    (
        messages.Stats(4, (RunningRequest("", "t", 3),), 1, (ResidentAdapter("a@1", 10, 1, True),), 8, {"steps": 2}),
        FROM_REPLICA,
    ),
    (messages.Timing("step_s", 0.1), FROM_REPLICA),
]
each = pytest.mark.parametrize(("message", "known"), MESSAGES, ids=lambda m: getattr(m, "kind", ""))


@each
def test_a_message_comes_back_as_it_was(message: Any, known: TypeAdapter[Any]) -> None:
    assert read(written(message), known) == message


def test_every_message_is_tried_here_and_has_a_kind_of_its_own() -> None:
    kinds = {
        kind: default
        for kind in vars(messages).values()
        if dataclasses.is_dataclass(kind)
        for f in dataclasses.fields(kind)
        if f.name == "kind" and (default := f.default)
    }
    assert {type(message) for message, _ in MESSAGES} == set(kinds) and len(set(kinds.values())) == len(kinds)


@each
def test_the_other_direction_does_not_take_it(message: Any, known: TypeAdapter[Any]) -> None:
    with pytest.raises(FormatError, match="damaged"):
        read(written(message), TO_REPLICA if known is FROM_REPLICA else FROM_REPLICA)


@pytest.mark.parametrize("labels", [(), ("a", "b", "c")])
def test_numbers_come_back_bit_for_bit(labels: tuple[str, ...]) -> None:
    numbers = torch.randn(4, 3)
    sent = messages.encoded(5, Classes(labels, numbers) if labels else numbers)
    again = read(written(sent), FROM_REPLICA)
    assert torch.equal(again.tensor(), numbers) and again.labels == labels and again.number == 5


@pytest.mark.parametrize("data", [b"", b"null", b'{"kind": "cancel", "number": "1"}', b'{"kind": "cancel"}', b"\xff"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="damaged"):
        read(data, TO_REPLICA)


@pytest.mark.parametrize("prompt", [("x",), (1.5,)])
def test_what_the_other_end_would_not_read_is_not_written(prompt: Any) -> None:
    with pytest.raises(SamplingError, match="cannot be sent"):
        written(messages.Submit(1, prompt, None, SamplingParams(), ""))


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, PolyveraError)]
)
def test_an_error_keeps_its_class_and_words(kind: type[PolyveraError]) -> None:
    again = fault_of(kind("why")).error()
    assert type(again) is kind and str(again) == "why"


def test_an_error_of_another_kind_is_the_engines() -> None:
    for name in ("OSError", "annotations", "get_close_matches", "__doc__", "Iterable"):
        assert type(Fault(name, "x").error()) is EngineError


def test_an_error_keeps_what_else_it_says() -> None:
    again = fault_of(BusyError("later", 7.0)).error()
    assert isinstance(again, BusyError) and again.retry_s == 7.0
    field = fault_of(SamplingError("no", "top_p")).error()
    assert isinstance(field, SamplingError) and field.param == "top_p"
