"""Long texts are read in a process that gives what this one would, and that is ended where it takes too long."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tiny_serve import LONGEST_WAIT, make_tokenizer, until

from polyvera.errors import ContextLengthError, PromptError, SamplingError
from polyvera.model.answer import Meaning
from polyvera.model.message import Message
from polyvera.model.prompt import Template
from polyvera.model.task import TOKEN_LABEL
from polyvera.server import tokenizer_processes
from polyvera.server.classification import classified_texts
from polyvera.server.prompt_tokens import chat_tokens, passage_ids, prompt_tokens
from polyvera.server.tokenizer_processes import NUM_PROCESSES, TokenizerProcesses
from polyvera.server.tokenizer_worker import CALLS

TEXT = "one two  three\n<|im_end|> é"
MESSAGES = (Message("user", TEXT, (("name", "x"),)), Message("assistant", "four"))
TOOLS = ({"type": "function", "function": {"name": "look"}},)
SIZES = {"max_context": 10_000, "num_asked": 1, "param": "messages"}
GIVEN: dict[str, dict[str, Any]] = {
    "bare_ids": {"text": TEXT},
    "chat_ids": {"messages": MESSAGES, "answer_next": False},
    "chat_tokens": {"messages": MESSAGES, "given": Template(tools=TOOLS, more={"enable_thinking": False}), **SIZES},
    "classified_texts": {"prompts": [TEXT, [1, 2]], "pairs": [None, None], "meaning": Meaning(), "max_context": 999},
    "passage_ids": {"prompt": TEXT},
    "prompt_ids": {"prompt": TEXT},
    "prompt_tokens": {"prompts": [TEXT, "two"], **SIZES},
    "text_tokens": {"prompts": [TEXT, [3, 4]], "max_context": 10_000, "cut": 3},
}


TEMPLATE = """{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no role') }}
{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}"""


def made() -> TokenizerProcesses:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return TokenizerProcesses(tokenizer)


def ready(limit_s: float) -> TokenizerProcesses:
    found = made()
    found.call(passage_ids, {"prompt": TEXT})
    until(lambda: not found._ready.empty())
    found._all[0].limit_s = limit_s
    return found


@pytest.fixture(scope="module")
def processes() -> Iterator[TokenizerProcesses]:
    before = set(psutil.Process().children())
    found = ready(LONGEST_WAIT)
    yield found
    found.close()
    until(lambda: set(psutil.Process().children()) <= before)


@pytest.mark.parametrize("name", CALLS)
def test_another_process_reads_as_this_one(processes: TokenizerProcesses, name: str, monkeypatch) -> None:
    expected = CALLS[name](processes._tokenizer, **GIVEN[name])
    monkeypatch.setattr(processes, "_tokenizer", None)
    assert processes.call(CALLS[name], GIVEN[name]) == expected


def test_what_is_wrong_is_told_as_here(processes: TokenizerProcesses) -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 2 tokens") as told:
        processes.call(prompt_tokens, {"prompts": [TEXT], "max_context": 2, "num_asked": 1, "param": "prompt"})
    assert told.value.param == "prompt"
    with pytest.raises(PromptError, match="refuses the messages"):
        processes.call(chat_tokens, {**GIVEN["chat_tokens"], "messages": (Message("nobody", "a"),)})
    with pytest.raises(SamplingError, match="labels words"):
        tags = {**GIVEN["classified_texts"], "meaning": Meaning(task=TOKEN_LABEL, labels=("O", "B-x"))}
        processes.call(classified_texts, tags)


def test_half_a_character_is_read_here(processes: TokenizerProcesses) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        processes.call(passage_ids, {"prompt": "\ud800"})


def test_several_threads_are_answered_each_its_own(processes: TokenizerProcesses) -> None:
    texts = [f"{i} " * i for i in range(1, 9)]
    found: dict[str, list[int]] = {}
    threads = [
        threading.Thread(target=lambda t=text: found.update({t: processes.call(passage_ids, {"prompt": t})}))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST_WAIT)
    assert found == {text: passage_ids(processes._tokenizer, text) for text in texts}
    assert len(processes._all) <= NUM_PROCESSES


def test_a_text_that_takes_too_long_is_refused_and_the_next_one_read() -> None:
    found = ready(0.05)
    with pytest.raises(SamplingError, match="shorten it"):
        found.call(passage_ids, {"prompt": "word " * 2_000_000})
    found._all[0].limit_s = LONGEST_WAIT
    assert found.call(passage_ids, {"prompt": TEXT}) == passage_ids(found._tokenizer, TEXT)
    found.close()


def test_a_worker_that_reads_otherwise_is_not_used(monkeypatch, caplog) -> None:
    monkeypatch.setattr(tokenizer_processes, "TRIAL", "another text")
    found = made()
    with caplog.at_level(logging.WARNING):
        expected = found.call(passage_ids, {"prompt": TEXT})
        until(lambda: "no process reads texts as this one does" in caplog.text)
    assert found.call(passage_ids, {"prompt": TEXT}) == expected and found._ready.empty()
    found.close()


def test_a_tokenizer_that_cannot_be_saved_reads_here(monkeypatch, caplog) -> None:
    found = made()
    monkeypatch.setattr(type(found._tokenizer), "save_pretrained", lambda self, folder: 1 / 0)
    assert found.call(passage_ids, {"prompt": TEXT}) == passage_ids(found._tokenizer, TEXT)
    until(lambda: "division by zero" in caplog.text and not found._all)
    found.close()


def test_a_worker_that_cannot_be_begun_again_is_no_place_lost(monkeypatch) -> None:
    found = ready(LONGEST_WAIT)
    found._all[0].close()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(found._all[0], "ask", _fails)
        found.call(passage_ids, {"prompt": TEXT})
    until(lambda: not found._ready.empty())
    assert found.call(passage_ids, {"prompt": TEXT}) == passage_ids(found._tokenizer, TEXT)
    found.close()


def _fails(line: str) -> str:
    raise OSError("no room")
