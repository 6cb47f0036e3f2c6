"""A process that turns texts into tokens for a server, one call a line, and may be killed at any moment.

Started as `python -m polyvera.server.tokenizer_worker`. The first line is a TokenizerFiles, which is answered by the
tokens of TRIAL; each further one is a Call, answered by a CallResult. It takes MAX_MEMORY_BYTES more than at its start
and LIMIT_S for a call, or ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from polyvera.engine.worker_process import confine, end_after, giving_way
from polyvera.model.prompt import bare_ids, chat_ids, prompt_ids
from polyvera.replicas.messages import Fault, fault_of
from polyvera.server.classification import classified_texts
from polyvera.server.prompt_tokens import chat_tokens, passage_ids, prompt_tokens, text_tokens

LIMIT_S = 30.0
MAX_MEMORY_BYTES = 2 << 30
IDLE_S = 5.0  # of a call that is long
TRIAL = "Polyvera 1 turns  texts\ninto tokens: é, 漢字, <|im_end|>."
# By name: what is called with a tokenizer and with values that JSON can carry.
CALLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            bare_ids,
            chat_ids,
            chat_tokens,
            classified_texts,
            passage_ids,
            prompt_ids,
            prompt_tokens,
            text_tokens,
        )
    }
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Where a tokenizer was saved, and what it is called in errors."""

    folder: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function of CALLS and its arguments by name, without the tokenizer."""

    name: str
    arguments: dict[str, Any]

    def made(self, tokenizer: Any) -> CallResult:
        """What it returns or raises."""
        kinds = dict(_kinds(self.name))
        given = {name: kinds[name].validate_python(value) for name, value in self.arguments.items()}
        try:
            return CallResult(CALLS[self.name](tokenizer, **given))
        except Exception as error:
            return CallResult(None, fault_of(error))

    def value(self, found: Any) -> Any:
        """What came of it, read from JSON."""
        return dict(_kinds(self.name))["return"].validate_python(found)


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a call returned, or raised."""

    value: Any
    fault: Fault | None = None


@cache
def _kinds(name: str) -> tuple[tuple[str, TypeAdapter[Any]], ...]:
    hints = get_type_hints(CALLS[name], localns={"Tokenizer": Any})
    return tuple((one, TypeAdapter(hint)) for one, hint in hints.items())


def line(value: Any) -> str:
    """A value as one line. Raises PydanticSerializationError for half a character."""
    return to_json(value).decode() + "\n"


def read(text: str | bytes, kind: type[Any]) -> Any:
    """The value of a line."""
    return TypeAdapter(kind).validate_python(from_json(text))


def main() -> None:
    """Answers until its input ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    given: TokenizerFiles = read(sys.stdin.readline(), TokenizerFiles)
    tokenizer = AutoTokenizer.from_pretrained(given.folder, trust_remote_code=False)
    tokenizer.name_or_path = given.name
    confine(MAX_MEMORY_BYTES)
    print(line(prompt_ids(tokenizer, TRIAL)), end="", flush=True)
    for asked in sys.stdin:
        end_after(LIMIT_S + 1)
        with giving_way(IDLE_S):
            answer = line(read(asked, Call).made(tokenizer))
        end_after(0)
        print(answer, end="", flush=True)


if __name__ == "__main__":
    main()
