"""Grammar: an answer that follows a JSON schema, token by token, by llguidance."""

from __future__ import annotations

import json
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polyvera.errors import SamplingError, ServeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SCHEMA_CHARS = 65_536
# Small models else fill the context with spaces between two fields.
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT = '{"type": "object"}'


class Grammar:
    """Where one answer stands in its grammar. ends: the tokens that it allows at its end; to it all others are text."""

    def __init__(self, matcher: Any, num_tokens: int, ends: frozenset[int]) -> None:
        self._matcher, self._num_tokens, self.ends = matcher, num_tokens, ends
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
            raise ServeError(f"the answer cannot continue as its JSON schema says: {why}")


class Grammars:
    """The grammars of one tokenizer. Any number of threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_tokens: int, ends: frozenset[int]) -> None:
        # llguidance takes one end token, and ours is the tokenizer's own where there is one.
        end = getattr(tokenizer, "eos_token_id", None)
        self._ends = frozenset((end,)) if isinstance(end, int) else ends
        self._tokenizer, self._num_tokens = tokenizer, num_tokens
        self._lock = Lock()

    def of(self, schema: str) -> Grammar:
        """A grammar at its beginning. Raises SamplingError for a schema that cannot be followed."""
        import llguidance

        if len(schema) > MAX_SCHEMA_CHARS:
            raise SamplingError(f"the schema has {len(schema)} characters; at most {MAX_SCHEMA_CHARS} are read")
        try:
            parsed = json.loads(schema)
            text = ANY_OBJECT if parsed == {} else json.dumps(parsed)
            with self._lock:
                known = self._known
            rules = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=COMPACT)
            matcher = llguidance.LLMatcher(known, rules)
        except (ValueError, RecursionError) as error:
            raise SamplingError(f"the JSON schema cannot be followed: {error}") from error
        if matcher.is_error():
            raise SamplingError(f"the JSON schema cannot be followed: {matcher.get_error()}")
        grammar = Grammar(matcher, self._num_tokens, self._ends)
        try:
            grammar.restrict(torch.zeros(self._num_tokens))  # one that allows no first token fails here
        except ServeError as error:
            raise SamplingError(f"the JSON schema cannot be followed: {error}") from error
        return grammar

    @cached_property
    def _known(self) -> Any:
        import llguidance.hf

        return llguidance.hf.from_tokenizer(
            self._tokenizer,  # type: ignore[arg-type]
            n_vocab=self._num_tokens,
            eos_token=sorted(self._ends),
        )
