"""Grammar: an answer that follows a JSON schema or a grammar, token by token, by llguidance."""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polyvera.engine.generation.grammar_process import GrammarProcesses
from polyvera.engine.generation.grammar_worker import LARK, Vocabulary, grammar_of, limits
from polyvera.errors import SamplingError, ServeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_KEPT = 16  # compiled schemas
MAX_WHY_CHARS = 500
SCHEMA = "JSON schema"
ANY_OBJECT = '{"type": "object"}'


class Grammar:
    """Where one answer stands in its grammar. ends: the tokens that it allows at its end; to it all others are text."""

    def __init__(self, matcher: Any, num_tokens: int, ends: frozenset[int], what: str) -> None:
        self._matcher, self._num_tokens, self.ends, self._what = matcher, num_tokens, ends, what
        self._mask = np.zeros((num_tokens + 31) // 32, np.uint32)

    def restrict(self, logits: Tensor) -> None:
        """Bars the tokens that the grammar does not allow next; logits (vocabulary,), in place.

        Raises ServeError where the grammar allows none.
        """
        # llguidance's own product of mask and logits is compiled at the first request, which takes seconds.
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._num_tokens]
        logits.masked_fill_(torch.from_numpy(bits == 0).to(logits.device), -torch.inf)

    def accept(self, token: int) -> bool:
        """Moves on by one token; whether nothing can follow it. Raises ServeError for a token that is not allowed."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            why = self._matcher.get_error().partition("<state>")[0].strip()
            raise ServeError(f"the answer cannot continue as its {self._what} says: {why}")


class Grammars:
    """The grammars of one tokenizer. Any number of threads.

    A schema is tried in a process of its own first, where it can be ended: no limit of the library's ends a compile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_tokens: int, ends: frozenset[int]) -> None:
        # llguidance takes one end token, and ours is the tokenizer's own where there is one.
        end = getattr(tokenizer, "eos_token_id", None)
        self._ends = frozenset((end,)) if isinstance(end, int) else ends
        self._tokenizer, self._num_tokens = tokenizer, num_tokens
        self._lock = Lock()
        self._tried: OrderedDict[str, Any] = OrderedDict()

    def of(self, schema: str) -> Grammar:
        """A grammar at its beginning. Raises SamplingError for a schema that cannot be followed, BusyError."""
        try:
            parsed = json.loads(schema)
            text = ANY_OBJECT if parsed == {} else json.dumps(parsed)
        except (ValueError, RecursionError) as error:
            raise _refused(SCHEMA, error) from error
        return self._begun(text, SCHEMA)

    def of_grammar(self, grammar: str) -> Grammar:
        """The same for a grammar of Lark, as llguidance reads it, or of GBNF."""
        return self._begun(LARK + grammar.removeprefix(LARK), "grammar")

    def _begun(self, text: str, what: str) -> Grammar:
        with self._lock:
            known = self._tried.get(text)
        if known is None:
            known = self._compiled(text, what)
            with self._lock:
                self._tried[text] = known
                while len(self._tried) > NUM_KEPT:
                    self._tried.popitem(last=False)
        return Grammar(known.deep_copy(), self._num_tokens, self._ends, what)

    def close(self) -> None:
        """Ends the processes."""
        if "_processes" in self.__dict__:
            self._processes.close()

    def _compiled(self, text: str, what: str) -> Any:
        from llguidance import LLMatcher

        problem = self._processes.try_schema(text)
        if problem:
            raise _refused(what, problem)
        with self._lock:
            known = self._known
        matcher = LLMatcher(known, grammar_of(text), limits=limits())
        if matcher.is_error():
            raise _refused(what, matcher.get_error())
        try:
            Grammar(matcher.deep_copy(), self._num_tokens, self._ends, what).restrict(torch.zeros(self._num_tokens))
        except ServeError as error:  # it allows no first token
            raise _refused(what, error) from error
        return matcher

    @cached_property
    def _processes(self) -> GrammarProcesses:
        backend: Any = self._tokenizer
        return GrammarProcesses(Vocabulary(backend.backend_tokenizer.to_str(), self._num_tokens, sorted(self._ends)))

    @cached_property
    def _known(self) -> Any:
        import llguidance.hf

        return llguidance.hf.from_tokenizer(
            self._tokenizer,  # type: ignore[arg-type]
            n_vocab=self._num_tokens,
            eos_token=sorted(self._ends),
        )


def _refused(what: str, why: object) -> SamplingError:
    first_line = str(why).partition("\n")[0][:MAX_WHY_CHARS]
    param = "response_format" if what == SCHEMA else "structured_outputs"
    return SamplingError(f"the {what} cannot be followed: {first_line}", param)
