"""A process that compiles JSON schemas and grammars for another, one a line, and may be killed at any moment.

Started as `python -m polyvera.engine.generation.grammar_worker`. The first line is a Vocabulary, each further one a
schema or a grammar; each is answered by a line with what is wrong with it, "" for nothing. It takes MAX_MEMORY_BYTES
more than at its start and LIMIT_S for a schema, or ends.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from polyvera.engine.worker_process import confine, end_after, giving_way

LIMIT_S = 4.0
MAX_MEMORY_BYTES = 512 << 20
# Small models else fill the context with spaces between two fields.
COMPACT: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,  # as anyOf where its branches cannot be distinguished
}
LARK = "%llguidance {}\n"  # no JSON begins so


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that grammars are of. tokenizer: as JSON of the library `tokenizers`."""

    tokenizer: str
    num_tokens: int
    ends: list[int]

    @property
    def line(self) -> str:
        """As the first line."""
        return json.dumps(asdict(self)) + "\n"


def grammar_of(schema: str) -> str:
    """llguidance's grammar of a JSON schema, or of a grammar of Lark or GBNF that follows LARK.

    Raises whatever the library raises, and may take for ever: for one that was not tried, the worker calls it.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if schema.startswith(LARK):
        return LARK + str(any_to_lark(schema.removeprefix(LARK)))
    return LLMatcher.grammar_from_json_schema(schema, defaults=COMPACT)


def limits() -> Any:
    """What one grammar may take in the shared step: its time and memory there are bounded."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, step_lexer_fuel=200_000, step_max_items=50_000)


def main() -> None:
    """Answers until its input ends."""
    from llguidance import LLTokenizer

    given = Vocabulary(**json.loads(sys.stdin.readline()))
    tokenizer = LLTokenizer(given.tokenizer, n_vocab=given.num_tokens, eos_token=given.ends)
    confine(MAX_MEMORY_BYTES)
    print(json.dumps(""), flush=True)
    for line in sys.stdin:
        end_after(LIMIT_S + 1)
        with giving_way(LIMIT_S / 2):
            problem = _problem(tokenizer, json.loads(line))
        end_after(0)
        print(json.dumps(problem), flush=True)


def _problem(tokenizer: Any, schema: str) -> str:
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(tokenizer, grammar_of(schema), limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error())
    except Exception as error:  # a plain one, where the library's way from GBNF finds no root
        return str(error) or type(error).__name__


if __name__ == "__main__":
    main()
