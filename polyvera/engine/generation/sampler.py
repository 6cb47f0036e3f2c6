"""sample: the next token of every row from its logits, each row by its own request's sampler."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from polyvera.engine.generation.grammar import Grammar
from polyvera.engine.generation.request import SamplingParams, Token
from polyvera.errors import ServeError

SEED_BITS = 63
Sampled = Token | ServeError


class RequestSampler:
    """How one request's tokens are chosen: its settings, its own random stream, its grammar."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], ends: frozenset[int], grammar: Grammar | None = None
    ) -> None:
        self.params, self.grammar = params, grammar
        ends = ends if grammar is None else grammar.ends
        self.ends = frozenset() if params.ignore_eos else ends
        self._prompt = prompt
        self._stream: torch.Generator | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the largest logit decides, and nothing else is told."""
        s = self.params
        changed = s.bias or s.min_tokens or s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        return s.is_greedy and not changed and s.logprobs is None and self.grammar is None

    def token(self, raw: Tensor, answer: Sequence[int]) -> Token:
        """The next token. raw: logits (vocabulary,) in fp32; answer: the tokens so far."""
        logits = self._shaped(raw, answer)
        chosen = int(logits.argmax()) if self.params.is_greedy else self._draw(logits)
        return self._with_logprobs(raw, chosen)

    def accept(self, token: int) -> bool:
        """Moves the grammar on; whether the answer is complete with this token. Raises ServeError."""
        return self.grammar is not None and self.grammar.accept(token)

    def _shaped(self, raw: Tensor, answer: Sequence[int]) -> Tensor:
        s, logits = self.params, raw.clone()
        for token, value in s.bias:
            logits[token] += value
        if s.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*self._prompt, *answer}), device=raw.device)
            was = logits[seen]
            logits[seen] = torch.where(was < 0, was * s.repetition_penalty, was / s.repetition_penalty)
        if answer and (s.presence_penalty or s.frequency_penalty):
            counts = torch.bincount(torch.tensor(answer), minlength=len(logits)).to(logits)
            logits -= s.frequency_penalty * counts + s.presence_penalty * (counts > 0)
        barred = [*self.ends, *s.stop_ids] if len(answer) < s.min_tokens else []
        if barred:
            logits[torch.tensor(barred, device=raw.device)] = -torch.inf
        if self.grammar is not None:
            self.grammar.restrict(logits)
        return logits

    def _draw(self, logits: Tensor) -> int:
        """By the inverse of the cumulative distribution at one number of the request's own stream."""
        probs, tokens = torch.softmax(logits / self.params.temperature, -1).sort(descending=True, stable=True)
        kept = self._num_kept(probs)
        total = probs[:kept].cumsum(0)
        at = torch.rand((), generator=self._random(), dtype=torch.float64).item() * float(total[-1])
        return int(tokens[min(int(torch.searchsorted(total, at, right=True)), kept - 1)])

    def _num_kept(self, probs: Tensor) -> int:
        """How many of the likeliest tokens stay, of those that are possible at all; top_p is of what top_k left."""
        s = self.params
        kept = int((probs > max(0.0, s.min_p * float(probs[0]) * (1 - 1e-6))).sum())
        if s.top_k:
            kept = min(kept, s.top_k)
        if s.top_p < 1.0:
            total = probs[: s.top_k or len(probs)].cumsum(0)
            kept = min(kept, int((total < s.top_p * float(total[-1])).sum()) + 1)
        return max(kept, 1)

    def _random(self) -> torch.Generator:
        if self._stream is None:
            seed = self.params.seed
            self._stream = torch.Generator()
            self._stream.manual_seed(secrets.randbits(SEED_BITS) if seed is None else seed % 2**SEED_BITS)
        return self._stream

    def _with_logprobs(self, raw: Tensor, chosen: int) -> Token:
        wanted = self.params.logprobs
        if wanted is None:
            return Token(chosen)
        logprobs = raw.log_softmax(-1)
        values, tokens = logprobs.topk(min(wanted, len(raw)))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)


def sample(logits: Tensor, samplers: Sequence[RequestSampler], answers: Sequence[Sequence[int]]) -> list[Sampled]:
    """logits (rows, vocabulary) -> one token a row, an error for a row that has none."""
    values, likeliest = (t.tolist() for t in logits.max(-1))
    tokens: list[Sampled] = []
    for i, sampler in enumerate(samplers):
        if not abs(values[i]) < float("inf"):  # a NaN is the largest, and less than nothing
            tokens.append(ServeError("this model and adapter gave numbers that are not finite for this prompt"))
        elif sampler.is_plain:
            tokens.append(Token(likeliest[i]))
        else:
            tokens.append(_sampled(sampler, logits[i].float(), answers[i]))
    return tokens


def _sampled(sampler: RequestSampler, logits: Tensor, answer: Sequence[int]) -> Sampled:
    try:
        return sampler.token(logits, answer)
    except ServeError as error:
        return error
