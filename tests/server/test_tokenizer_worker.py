"""A worker answers each call on a line of its own, and ends where its input does."""

import subprocess
import sys
from pathlib import Path

from tiny_serve import LONGEST_WAIT, make_tokenizer

from polyvera.model.prompt import prompt_ids
from polyvera.server.tokenizer_processes import WORKER
from polyvera.server.tokenizer_worker import TRIAL, Call, CallResult, TokenizerFiles, line, read


def test_each_line_is_answered(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    calls = [
        Call("prompt_ids", {"prompt": "one\ntwo"}),
        Call("prompt_tokens", {"prompts": ["a b"], "max_context": 1, "num_asked": 0, "param": "prompt"}),
    ]
    done = subprocess.run(
        [sys.executable, "-m", WORKER],
        input=line(TokenizerFiles(str(tmp_path), "tiny")) + "".join(map(line, calls)),
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT,
        check=True,
    )
    first, *answers = done.stdout.splitlines()
    found = [read(answer, CallResult) for answer in answers]
    assert first + "\n" == line(prompt_ids(tokenizer, TRIAL))
    assert calls[0].value(found[0].value) == prompt_ids(tokenizer, "one\ntwo")
    assert found[1].fault is not None and "maximum context length" in found[1].fault.message
