"""Request: what one caller asks for, and the parts of its answer, step by step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

from polyvera.errors import PolyveraError, SamplingError
from polyvera.store.reference import AdapterRef

STOP, LENGTH, CANCELLED, FAILED = "stop", "length", "cancelled", "error"
MAX_LOGPROBS, MAX_STOPS, MAX_STOP_CHARS = 20, 16, 256
MAX_STOP_IDS, MAX_BIASES, MAX_SCHEMA_CHARS = 256, 1024, 65_536
MIN_TEMPERATURE = 1e-5  # logits over less are beyond fp32
_numbers = count(1)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of an answer are chosen.

    max_tokens: the most tokens of the answer; None is as many as the context holds.
    temperature: 0 takes the likeliest token.
    top_p: sample from the likeliest tokens that together have this much of the probability that top_k leaves.
    top_k: sample from this many of the likeliest tokens; 0 is all.
    min_p: leave out tokens with less than this share of the likeliest one's probability.
    seed: the same seed gives the same answer; None is a random one.
    stop: strings that end the answer and are left out of it, at most 16.
    stop_ids: tokens that end it.
    min_tokens: no end token and none of stop_ids before so many tokens.
    ignore_eos: an end token is a token like any other, and the answer continues (as in vLLM).
    repetition_penalty: divides the logits of tokens in prompt or answer (as in transformers); 1 is none.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the answer (as at OpenAI).
    bias: (token, number added to its logit, -100 to 100).
    logprobs: how many alternatives to return with each token, 0 to 20; None returns no log probabilities.
    schema: a JSON schema that the answer follows; '{}' is any JSON object.
    prompt_logprobs: the same for each token of the prompt, but for the first; max_tokens may then be 0.
    grammar: a grammar that it follows, in llguidance's form of Lark; not together with a schema.

    Raises SamplingError for a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    schema: str | None = None
    grammar: str | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # no NaN is
                raise SamplingError(f"{name}={value!r} must be from {low:g} to {high:g}")
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise SamplingError("max_tokens=0 must be at least 1, unless the prompt's log-probabilities are asked for")
        if self.repetition_penalty == 0.0 or self.top_p == 0.0:
            name = "top_p" if self.top_p == 0.0 else "repetition_penalty"
            raise SamplingError(f"{name}=0 must be more than 0")
        if len(self.stop) > MAX_STOPS or not all(1 <= len(s) <= MAX_STOP_CHARS for s in self.stop):
            raise SamplingError(f"stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters each")
        for name, given, most in (("stop_ids", self.stop_ids, MAX_STOP_IDS), ("logit_bias", self.bias, MAX_BIASES)):
            if len(given) > most:
                raise SamplingError(f"{name} has {len(given)} entries; at most {most} are taken", name)
        if not all(-100.0 <= value <= 100.0 for _, value in self.bias):
            raise SamplingError("logit_bias: each value is from -100 to 100", "logit_bias")
        self._check_form()

    def _check_form(self) -> None:
        if self.schema is not None and self.grammar is not None:
            raise SamplingError("an answer follows a schema or a grammar: give one of the two", "response_format")
        form = self.schema or self.grammar or ""
        if len(form) > MAX_SCHEMA_CHARS:
            raise SamplingError(
                f"the schema has {len(form)} characters; at most {MAX_SCHEMA_CHARS} are read", "response_format"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < MIN_TEMPERATURE


RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (0, 2**31),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "seed": (-(2**63), 2**64 - 1),
    "min_tokens": (0, 2**31),
    "repetition_penalty": (0.0, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer. logprob: under the model's own distribution; top: (token, logprob), likeliest first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step adds to an answer: new tokens, new text, and at the end why it ended.

    text may lag behind the tokens, where it could be the beginning of a stop text or of a character. finish_reason:
    None while it runs, else 'stop', 'length', 'cancelled' or 'error', with the error. prompt: its tokens but the
    first, in the first output, where they were asked for.
    """

    tokens: tuple[Token, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    error: PolyveraError | None = None
    prompt: tuple[Token, ...] = ()


@dataclass(slots=True)
class Answer:
    """An answer as far as it was reported: tokens, text, and at its end why it ended."""

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    prompt: tuple[Token, ...] = ()

    @property
    def ids(self) -> list[int]:
        """The token numbers."""
        return [token.id for token in self.tokens]

    def add(self, output: RequestOutput) -> None:
        """Takes in the next part."""
        self.tokens += output.tokens
        self.text += output.text
        self.finish_reason = output.finish_reason
        self.prompt = output.prompt or self.prompt


@dataclass(eq=False, slots=True)
class Request:
    """One answer in the making.

    prompt: tokens. adapter: None is the base. on_output: called with every RequestOutput in the engine's thread; must
    not block. tenant: whose turn it is; tenants take turns. weight: its share of them. submitted, admitted,
    first_token, finished: seconds of time.monotonic(), 0 until then.
    """

    prompt: Sequence[int]
    adapter: AdapterRef | None
    params: SamplingParams
    on_output: Callable[[RequestOutput], None]
    tenant: str = ""
    sampler: Any = None
    number: int = field(default_factory=lambda: next(_numbers))
    answer: list[int] = field(default_factory=list)
    num_reused: int = 0
    submitted: float = field(default_factory=monotonic)
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    weight: float = 1.0

    def report(self, output: RequestOutput) -> bool:
        """Gives the caller the next part; whether it took it."""
        if output.finish_reason is not None:
            self.finished = monotonic()
        try:
            self.on_output(output)
        except Exception:
            log.exception("on_output raised; the request is cancelled")
            return False
        return True

    @property
    def whole(self) -> Request:
        """Itself: a prompt is scheduled as one."""
        return self

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of its prompt are asked for."""
        return self.params.prompt_logprobs is not None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.prompt) + len(self.answer)
