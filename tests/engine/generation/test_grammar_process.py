"""A schema whose compile does not end is refused in time, and the next one is read as before."""

import json
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from tiny_serve import LONGEST_WAIT, make_tokenizer, until

from polyvera.engine.generation import grammar_process
from polyvera.engine.generation.grammar_process import NUM_PROCESSES, GrammarProcesses
from polyvera.engine.generation.grammar_worker import Vocabulary

ENDLESS = json.dumps({"allOf": [{"type": "string", "pattern": f".*x{i}.*y"} for i in range(20)]})
FINE = '{"type": "boolean"}'


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarProcesses]:
    monkeypatch.setattr(grammar_process, "LIMIT_S", 1.0)
    tokenizer, before = make_tokenizer(), set(psutil.Process().children())
    found = GrammarProcesses(Vocabulary(tokenizer.backend_tokenizer.to_str(), len(tokenizer), [1]))
    yield found
    found.close()
    until(lambda: set(psutil.Process().children()) <= before)


def test_what_is_wrong_is_told(processes: GrammarProcesses) -> None:
    assert processes.try_schema(FINE) == ""
    assert "no such type" in processes.try_schema('{"type": "no such type"}')


def test_a_compile_that_does_not_end_is_ended(processes: GrammarProcesses) -> None:
    assert "too complex" in processes.try_schema(ENDLESS)
    assert processes.try_schema(FINE) == ""


def test_a_worker_that_was_killed_is_started_again(processes: GrammarProcesses) -> None:
    assert processes.try_schema(FINE) == ""
    for child in psutil.Process().children():
        child.kill()
        child.wait(LONGEST_WAIT)
    assert processes.try_schema(FINE) == ""


def test_others_are_read_meanwhile(processes: GrammarProcesses) -> None:
    asked = [threading.Thread(target=processes.try_schema, args=(ENDLESS,)) for _ in range(NUM_PROCESSES + 1)]
    for one in asked:
        one.start()
    time.sleep(0.1)
    assert processes.try_schema(FINE) == ""
    for one in asked:
        one.join(LONGEST_WAIT)
        assert not one.is_alive()
