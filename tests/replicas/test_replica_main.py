"""A replica in this process, at the other end of a socket: what it answers to each message."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_serve import Solo
from tiny_server import make_base

from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import FormatError
from polyvera.replicas import messages
from polyvera.replicas.connection import Connection
from polyvera.replicas.replica_main import Replica
from polyvera.store.registry import Registry

LONG = SamplingParams(max_tokens=1000, ignore_eos=True)


@pytest.fixture
def ends(folder: Path) -> Iterator[tuple[Replica, Iterator[Any]]]:
    """A started replica, and what it says."""
    ours, theirs = socket.socketpair()
    near, far = Connection(ours, messages.FROM_REPLICA), Connection(theirs, messages.TO_REPLICA)
    replica = Replica(far)
    replica.start(messages.Start(str(folder / "tiny"), str(folder / "store"), Limits(max_rows=2)))
    yield replica, (m for m in near.messages() if not isinstance(m, messages.Timing))
    replica._engine.stop()
    far.close()
    near.close()


def test_it_is_ready_and_answers_part_by_part(ends: Any) -> None:
    replica, said = ends
    ready = next(said)
    assert isinstance(ready, messages.Ready) and ready.dtype == "float32" and ready.limits.max_context == 2048
    replica.handle(messages.Submit(7, (5, 6), None, SamplingParams(max_tokens=4), "acme"))
    assert next(said) == messages.Accepted(7), "before any part"
    parts = [next(said)]
    while parts[-1].finish_reason is None:
        parts.append(next(said))
    ids = [token.id for part in parts for token in part.tokens]
    assert ids == Solo(make_base(2048)).answers(None, [5, 6], 4) and {part.number for part in parts} == {7}
    assert not replica._open


def test_a_refusal_is_a_fault_and_a_cancelled_answer_ends(ends: Any) -> None:
    replica, said = ends
    next(said)
    replica.handle(messages.Submit(1, (), None, LONG, ""))
    refused = next(said)
    assert refused.number == 1 and refused.fault.name == "SamplingError" and not replica._open
    replica.handle(messages.Submit(2, (5,), None, LONG, ""))
    assert next(said) == messages.Accepted(2)
    replica.handle(messages.Cancel(2))
    replica.handle(messages.Cancel(99))
    last = next(said)
    while last.finish_reason is None:
        last = next(said)
    assert last.finish_reason == "cancelled" and not replica._open


@pytest.mark.parametrize("form", [{"schema": '{"enum": ["a", "b"]}'}, {"grammar": 'start: "a" | "b"'}])
def test_what_is_compiled_lets_others_pass(ends: Any, form: dict[str, str]) -> None:
    replica, said = ends
    next(said)
    replica.handle(messages.Submit(1, (5,), None, SamplingParams(max_tokens=1, **form), ""))
    replica.handle(messages.Submit(2, (5,), None, SamplingParams(max_tokens=1), ""))
    accepted = [message.number for message in said_until(said, 2)]
    assert accepted == [2, 1]


def said_until(said: Iterator[Any], num: int) -> list[Any]:
    """The first of those accepted."""
    found: list[Any] = []
    while len(found) < num:
        message = next(said)
        found += [message] if isinstance(message, messages.Accepted) else []
    return found


def test_commands_and_stats_are_answered_by_number(ends: Any, folder: Path) -> None:
    replica, said = ends
    next(said)
    ref = Registry(folder / "store").resolve("acme/one")
    for number, name in enumerate(("preload", "pin", "unpin", "evict")):
        replica.handle(messages.Command(number, name, ref, 30.0))
        assert next(said) == messages.CommandDone(number)
    replica.handle(messages.GetStats(9))
    stats = next(said)
    assert isinstance(stats, messages.Stats) and stats.number == 9 and stats.totals["loads"] == 1
    with pytest.raises(FormatError, match="takes one Start"):
        replica.handle(messages.Start("m", None, Limits()))
