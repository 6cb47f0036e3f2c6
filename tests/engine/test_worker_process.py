"""A worker answers lines, is begun again once it has ended, and ends where its answer takes too long."""

import json

import psutil
import pytest
from tiny_serve import LONGEST_WAIT, make_tokenizer

from polyvera.engine.generation.grammar_process import WORKER
from polyvera.engine.generation.grammar_worker import Vocabulary
from polyvera.engine.worker_process import WorkerProcess
from polyvera.errors import BusyError

FINE, TOKENIZER = json.dumps('{"type": "boolean"}') + "\n", make_tokenizer()
LINE = Vocabulary(TOKENIZER.backend_tokenizer.to_str(), len(TOKENIZER), [1]).line


def test_it_answers_and_is_begun_again_and_is_in_its_servers_session() -> None:
    worker = WorkerProcess(WORKER, lambda: LINE, LONGEST_WAIT)
    assert worker.ask(FINE) == worker.ask(FINE) == '""\n' and worker.start() == ""
    child = psutil.Process(worker._process.pid)
    assert child.nice() > psutil.Process().nice()
    child.kill()
    child.wait(LONGEST_WAIT)
    assert worker.ask(FINE) == '""\n'
    worker.close()


def test_one_that_takes_too_long_is_ended() -> None:
    worker = WorkerProcess(WORKER, lambda: LINE, 0.0)
    assert worker.start() and worker.ask(FINE) == "" and worker._process is None


def test_one_that_does_not_start_is_busy() -> None:
    with pytest.raises(BusyError, match="does not start"):
        WorkerProcess(WORKER, lambda: "nothing that it reads\n", LONGEST_WAIT).start()
