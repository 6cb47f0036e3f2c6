"""A worker compiles one schema a line, and ends where its input does."""

import json
import subprocess
import sys

from tiny_serve import LONGEST_WAIT, make_tokenizer

from polyvera.engine.generation.grammar_worker import LARK, Vocabulary, grammar_of, limits


def test_each_line_is_answered_by_what_is_wrong_with_it() -> None:
    tokenizer = make_tokenizer()
    vocabulary = Vocabulary(tokenizer.backend_tokenizer.to_str(), len(tokenizer), [1])
    schemas = ['{"type": "boolean"}', '{"type": "no such type"}', "not JSON", '{"type": "integer"}']
    schemas += [LARK + text for text in ('root ::= "a"', "00", 'r ::= "a"', "root ::= " + 9999 * "(", 'start: "a"')]
    done = subprocess.run(
        [sys.executable, "-m", "polyvera.engine.generation.grammar_worker"],
        input=vocabulary.line + "".join(json.dumps(schema) + "\n" for schema in schemas),
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT,
        check=True,
    )
    assert [bool(json.loads(line)) for line in done.stdout.splitlines()[1:]] == [
        *(False, True, True, False),
        *(False, True, True, True, False),
    ]


def test_grammars_and_their_limits_are_the_librarys() -> None:
    assert "%json" in grammar_of('{"type": "null"}') or json.loads(grammar_of('{"type": "null"}'))
    assert limits().max_lexer_states == 50_000
