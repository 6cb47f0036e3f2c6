"""sample: the next token of every row from its logits, each row by its own request's sampler."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvera.adapter.pinned_memory import to_device, to_host
from polyvera.engine.generation.grammar import Grammar
from polyvera.engine.generation.request import SamplingParams, Token
from polyvera.errors import NonFiniteError, PolyveraError, ServeError

SEED_BITS = 63
Sampled = Token | PolyveraError


class OnDevice:
    """Numbers for some tokens, made into tensors once and copied to a device once."""

    def __init__(self, tokens: Sequence[int], values: Sequence[float]) -> None:
        self._pair = torch.tensor(tokens, dtype=torch.long), torch.tensor(values, dtype=torch.float32)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens and their numbers there."""
        self._pair = self._pair[0].to(device), self._pair[1].to(device)
        return self._pair


class SeenTokens:
    """How often an answer has each token, counted on as it grows, and which tokens its prompt has."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = torch.tensor(prompt, dtype=torch.long)
        self._num_counted = 0
        self._counts: Tensor | None = None
        self._in_prompt: Tensor | None = None

    def counted(self, answer: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """(counts in the answer, whether in the prompt), each (vocabulary,) beside `like`."""
        if self._counts is None or self._in_prompt is None:
            self._counts = torch.zeros_like(like)
            self._in_prompt = torch.zeros_like(like, dtype=torch.bool)
            self._in_prompt[self._prompt.to(like.device)] = True
        for token in answer[self._num_counted :]:  # one a step
            self._counts[token] += 1
        self._num_counted = len(answer)
        return self._counts, self._in_prompt


class RequestSampler:
    """How one request's tokens are chosen: its settings, its own random stream, its grammar."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], ends: frozenset[int], grammar: Grammar | None = None
    ) -> None:
        self.params, self.grammar = params, grammar
        ends = ends if grammar is None else grammar.ends
        self.ends = frozenset() if params.ignore_eos else ends
        self._bias = OnDevice([token for token, _ in params.bias], [value for _, value in params.bias])
        barred = sorted({*self.ends, *params.stop_ids}) if params.min_tokens else []
        self._barred = OnDevice(barred, [-torch.inf] * len(barred))
        self._seen = SeenTokens(prompt if params.repetition_penalty != 1.0 else ())
        self._stream: torch.Generator | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the largest logit decides, and nothing else is told."""
        return self.params.is_greedy and self._is_bare

    @property
    def is_drawn(self) -> bool:
        """Whether a token is drawn from the model's own distribution, and nothing else is told."""
        return self._is_bare and not self.params.is_greedy

    @property
    def _is_bare(self) -> bool:
        s = self.params
        changed = s.bias or s.min_tokens or s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0
        return not changed and s.logprobs is None and self.grammar is None

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
        if s.bias:
            logits.index_add_(0, *self._bias.on(raw.device))
        if s.repetition_penalty != 1.0 or s.presence_penalty or s.frequency_penalty:
            self._penalise(logits, answer)
        if len(answer) < s.min_tokens:
            logits.index_add_(0, *self._barred.on(raw.device))
        if self.grammar is not None:
            self.grammar.restrict(logits)
        return logits

    def _penalise(self, logits: Tensor, answer: Sequence[int]) -> None:
        s, (counts, in_prompt) = self.params, self._seen.counted(answer, logits)
        if s.repetition_penalty != 1.0:
            divided = torch.where(logits < 0, logits * s.repetition_penalty, logits / s.repetition_penalty)
            logits.copy_(torch.where(in_prompt | (counts > 0), divided, logits))
        if s.presence_penalty or s.frequency_penalty:
            logits -= s.frequency_penalty * counts + s.presence_penalty * (counts > 0)

    def _draw(self, logits: Tensor) -> int:
        """By the inverse of the cumulative distribution at one number of the request's own stream."""
        probs, tokens = torch.softmax(logits / self.params.temperature, -1).sort(descending=True, stable=True)
        kept = self._num_kept(probs)
        total = probs[:kept].cumsum(0)
        at = self.random() * float(total[-1])
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

    def random(self) -> float:
        """The next number of the request's own stream, from 0 to less than 1."""
        if self._stream is None:
            seed = self.params.seed
            self._stream = torch.Generator()
            self._stream.manual_seed(secrets.randbits(SEED_BITS) if seed is None else seed % 2**SEED_BITS)
        return torch.rand((), generator=self._stream, dtype=torch.float64).item()

    def _with_logprobs(self, raw: Tensor, chosen: int) -> Token:
        wanted = self.params.logprobs
        if wanted is None:
            return Token(chosen)
        logprobs = raw.log_softmax(-1)
        values, tokens = logprobs.topk(min(wanted, len(raw)))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward says of the next token of each row.

    logits: (rows, vocabulary). best: (2, rows) int32, the largest logit's bits as fp32 and its token.
    """

    logits: Tensor
    best: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Scores:
        """Logits with the best of each row."""
        values, tokens = logits.max(-1)
        return cls(logits, torch.stack((values.float().view(torch.int32), tokens.int())))

    def first(self, num_rows: int) -> Scores:
        """Those of the first rows."""
        return Scores(self.logits[:num_rows], self.best[:, :num_rows])

    def followed_by(self, other: Scores) -> Scores:
        """The rows of both."""
        return Scores(torch.cat((self.logits, other.logits)), torch.cat((self.best, other.best), 1))


def sample(scores: Scores, samplers: Sequence[RequestSampler], answers: Sequence[Sequence[int]]) -> list[Sampled]:
    """One token a row, an error for a row that has none; read from the device in one piece, but for unusual rows."""
    best = to_host(_chosen(scores, samplers))
    values, chosen = best[0].view(torch.float32).tolist(), best[1].tolist()
    tokens: list[Sampled] = []
    for i, sampler in enumerate(samplers):
        if not abs(values[i]) < float("inf"):  # a NaN is the largest, and less than nothing
            tokens.append(NonFiniteError("this model and adapter gave NaN or inf for this prompt"))
        elif sampler.is_plain or sampler.is_drawn:
            tokens.append(Token(chosen[i]))
        else:
            tokens.append(_sampled(sampler, scores.logits[i].float(), answers[i]))
    return tokens


def _chosen(scores: Scores, samplers: Sequence[RequestSampler]) -> Tensor:
    """The best, with what rows that are drawn have drawn in its place."""
    rows = [i for i, sampler in enumerate(samplers) if sampler.is_drawn]
    if not rows:
        return scores.best
    at = to_device(rows, scores.best.device)
    drawn = draw(scores.logits[at].float(), [samplers[i] for i in rows])
    return torch.stack((scores.best[0], scores.best[1].index_copy(0, at, drawn.int())))


def draw(logits: Tensor, samplers: Sequence[RequestSampler]) -> Tensor:
    """What token() of each sampler draws, in one pass: (rows, vocabulary) in fp32 -> (rows,)."""
    size, params = logits.shape[-1], [sampler.params for sampler in samplers]
    wanted = [p.temperature for p in params], [p.min_p for p in params], [p.top_p for p in params]
    numbers = [x for part in (*wanted, [s.random() for s in samplers]) for x in part]
    temperature, min_p, top_p, at = to_device(numbers, logits.device, torch.float64).view(4, -1, 1)
    top_k = to_device([min(p.top_k or size, size) for p in params], logits.device)[:, None]
    probs, tokens = torch.softmax(logits / temperature.float(), -1).sort(descending=True, stable=True)
    total = probs.cumsum(-1)
    kept = (probs > (min_p * probs[:, :1] * (1 - 1e-6)).float()).sum(-1, keepdim=True).minimum(top_k)
    enough = (total < (top_p * total.gather(-1, top_k - 1)).float()).sum(-1, keepdim=True) + 1
    kept = torch.where(top_p < 1.0, kept.minimum(enough), kept).clamp(min=1)
    place = torch.searchsorted(total, (at * total.gather(-1, kept - 1)).float(), right=True)
    return tokens.gather(-1, place.minimum(kept - 1))[:, 0]


def _sampled(sampler: RequestSampler, logits: Tensor, answer: Sequence[int]) -> Sampled:
    try:
        return sampler.token(logits, answer)
    except ServeError as error:
        return error
