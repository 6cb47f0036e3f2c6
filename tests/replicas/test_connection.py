"""What goes over a wire comes out as it was, and what is none of it is refused."""

import socket
from collections.abc import Iterator

import pytest
from tiny_serve import until

from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.generation.request import SamplingParams, Token
from polyvera.engine.limits import Limits
from polyvera.engine.stats import RunningRequest
from polyvera.errors import FormatError, SamplingError
from polyvera.replicas.connection import Connection
from polyvera.replicas.messages import (
    FROM_REPLICA,
    TO_REPLICA,
    Accepted,
    Cancel,
    Command,
    CommandDone,
    Delta,
    Fatal,
    Fault,
    GetStats,
    Ready,
    Start,
    Stats,
    Submit,
    Timing,
)
from polyvera.store.reference import AdapterRef

REF = AdapterRef("acme/one", 3, "/store/\u2603 '\"\n", 100, "ab")
CHOICE = SamplingParams(
    5, 0.7, 0.9, 3, 0.1, 2**64 - 1, ("\n", "\u2603"), (1, 2), 1, True, 1.1, 0.5, -0.5, ((3, 1.0),), 2, "{}"
)
TO = [
    Start("m", None, Limits(max_context=7), 3, "cuda:1"),
    Submit(1, (1, 2, 3), REF, CHOICE, "acme \u2603\0"),
    Submit(2, (), None, SamplingParams(temperature=1), ""),
    Cancel(2),
    Command(3, "pin", REF, 1.5),
    GetStats(4),
]
FROM = [
    Ready("a-b", "bfloat16", 300, Limits()),
    Fatal(Fault("OSError", "x")),
    Accepted(1),
    Accepted(2, Fault("BusyError", "later", 3.0)),
    Delta(1, (Token(5, -1.5, ((1, float("-inf")),)), Token(6)), "\u2603", "stop", None, 4),
    CommandDone(3, Fault("NotFoundError", "gone")),
    Stats(4, (RunningRequest("", "t", 3),), 1, (ResidentAdapter("a@1", 10, 1, True),), 8, {"steps": 2}),
    Timing("step_s", 0.1),
]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.mark.parametrize(("messages", "known"), [(TO, TO_REPLICA), (FROM, FROM_REPLICA)])
def test_all_comes_out_as_it_was(ends: tuple[socket.socket, socket.socket], messages: list, known: object) -> None:
    one, other = Connection(ends[0], known), Connection(ends[1], known)  # type: ignore[arg-type]
    for message in messages:
        one.send(message)
    one.close()
    assert list(other.messages()) == messages
    other.send(messages[0])  # to nobody
    other.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b'{"kind": "nothing"}',
        b'{"number": 1}',
        b'{"kind": "cancel", "number": "1"}',
        b'{"kind": "cancel", "number": 1.5}',
        b'{"kind": "command", "number": 1, "name": "__del__", "adapter": null, "timeout_s": 1}',
        b'{"kind": "accepted", "number": 1}',
        b"\xff",
    ],
)
def test_what_is_no_message_is_refused(ends: tuple[socket.socket, socket.socket], body: bytes) -> None:
    ends[0].sendall(len(body).to_bytes(4) + body)
    with pytest.raises(FormatError, match="damaged"):
        next(Connection(ends[1], TO_REPLICA).messages())


def test_a_length_that_is_none_and_half_a_message(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FormatError, match="bytes"):
        next(Connection(ends[1], TO_REPLICA).messages())


def test_half_a_message_is_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall((100).to_bytes(4) + b'{"kind"')
    ends[0].close()
    assert list(Connection(ends[1], TO_REPLICA).messages()) == []


def test_nobody_waits_for_an_end_that_does_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    one = Connection(ends[0], TO_REPLICA)
    for number in range(200):
        one.send(Submit(number, tuple(range(4000)), None, SamplingParams(), ""))
    other = Connection(ends[1], TO_REPLICA).messages()
    assert [next(other).number for _ in range(200)] == list(range(200))


def test_what_cannot_be_sent_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    one = Connection(ends[0], TO_REPLICA)
    for message in (Submit(1, ("x",), None, SamplingParams(), ""), Submit(1, (), None, SamplingParams(), "\ud800")):  # type: ignore[arg-type]
        with pytest.raises(SamplingError, match="cannot be sent"):
            one.send(message)
    with pytest.raises(SamplingError, match="at most"):
        one.send(Submit(1, (), None, SamplingParams(schema="x" * (64 << 20)), ""))
    ends[1].close()
    one.send(Cancel(1))
    until(lambda: not one._writer.is_alive())
