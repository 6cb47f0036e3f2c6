"""GenerationWorkload: what the steps of a Generator compute, and what becomes of each token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING

from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.adapter_loader import Observe
from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.kv_cache import KVCache, PrefixCache
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, STOP, Request, RequestOutput, Token
from polyvera.engine.generation.rows import Chunk, Row, first_copies, next_chunks
from polyvera.engine.generation.sampler import Sampled, Scores, sample
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.errors import PolyveraError
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polyvera.engine.generation.model_runner import ModelRunner
    from polyvera.engine.generation.row_runner import RowRunner

COPY_S = 0.02  # of a step, for prefixes to copy: a long one takes as long as a step
COPY_TOKENS = 256  # of a prefix at a time
Chunks = tuple[Sequence[Chunk], Sequence[Chunk]]  # of rows that decode, and of prompts
Output = tuple[Sequence[Row], Scores]  # the rows whose next tokens can now be chosen, and their scores


class GenerationWorkload:
    """A Workload: rows of the cache that decode, and pieces of prompts. A request is scheduled as a whole.

    limits: with max_context and chunk as numbers. num_tokens: of the vocabulary that may be chosen.
    """

    def __init__(
        self,
        runner: ModelRunner | RowRunner,
        tokenizer: PreTrainedTokenizerBase,
        adapters: AdapterCache,
        queue: RequestQueue[Request],
        limits: Limits,
        num_tokens: int,
        observe: Observe,
    ) -> None:
        self._tokenizer, self._adapters, self._queue, self._observe = tokenizer, adapters, queue, observe
        self._chunk, self._context = limits.chunk or 1, limits.max_context or 1
        self.scheduler: Scheduler[Request, Row] = Scheduler(limits.max_rows)
        self.totals = dict.fromkeys(("steps", "prompt_tokens", "answer_tokens", "reused_tokens"), 0)
        self._kv_cache = KVCache(limits.max_rows, self._context)
        self._prefix_cache = PrefixCache(limits.prefix_bytes)
        self._forward = runner.forward(adapters, self._kv_cache, limits, num_tokens)

    def parts(self, request: Request) -> Sequence[Request]:
        """The request itself."""
        return (request,)

    def acquire(self, request: Request) -> int | None:
        """The slot of its adapter."""
        return self._adapters.acquire(request.adapter)

    def start(self, request: Request, index: int, slot: int) -> Row:
        """A row that begins with the longest prefix that is cached for its tenant and adapter."""
        self._queue.left()
        self._observe("queue_s", request.admitted - request.submitted)
        row = Row(request, index, slot, request.sampler, Detokenizer(self._tokenizer, request.params.stop))
        prompt = () if request.is_scored else request.prompt  # a prefix that is cached has no scores
        found, length = self._prefix_cache.longest(_owner(request), prompt)
        row.prefix, request.num_reused = found, length
        self.totals["prompt_tokens"] += len(request.prompt)
        self.totals["reused_tokens"] += length
        return row

    def batches(self, most: int | None) -> Iterator[Chunks]:
        """The next tokens of all rows, or of as many as a step may have, where there are any."""
        self._copy_prefixes()
        decoding, reading = next_chunks(self.scheduler.running, self._chunk, most)
        for chunk in (*decoding, *reading):
            chunk.row.num_computed, chunk.row.last_step = chunk.stop, self.totals["steps"]
        if decoding or reading:
            yield decoding, reading

    def size(self, batch: Chunks) -> int:
        """Its tokens."""
        return sum(chunk.stop - chunk.start for chunk in chain(*batch))

    def rows(self, batch: Chunks) -> Iterable[Row]:
        """The rows of a batch."""
        return (chunk.row for chunk in chain(*batch))

    def forward(self, batch: Chunks) -> Output:
        """The rows whose next tokens can now be chosen, and their scores."""
        output = self._forward(*batch)
        self.totals["steps"] += 1
        return output

    def sample(self, batch: Chunks, output: Output) -> list[tuple[Row, Sampled]]:
        """The next token of each row, or why it has none."""
        rows, scores = output
        tokens = sample(scores, [row.sampler for row in rows], [row.request.answer for row in rows])
        return list(zip(rows, tokens, strict=True))

    def commit(self, batch: Chunks, samples: Sequence[tuple[Row, Sampled]]) -> None:
        """Adds each row's token to its answer, reports it, and ends what is complete."""
        for row, token in samples:
            if isinstance(token, PolyveraError):
                self._end(row, RequestOutput(finish_reason=FAILED, error=token))
                continue
            try:
                self._append(row, token)
            except PolyveraError as error:
                self._end(row, RequestOutput(finish_reason=FAILED, error=error))

    def end(self, request: Request, error: PolyveraError | None) -> None:
        """Ends a request wherever it is, cancelled where there is no error."""
        if request.finished:
            return
        output = RequestOutput(finish_reason=CANCELLED if error is None else FAILED, error=error)
        row = next((row for row in self.scheduler.running if row.request is request), None)
        if row is not None:
            self._end(row, output)
            return
        self.scheduler.drop(request)
        self._queue.left()
        self._report(request, output)

    def _copy_prefixes(self) -> None:
        """Pieces of each tenant's oldest by turns, for a while, and until there is a row to compute."""
        end = monotonic() + COPY_S
        while rows := first_copies(self.scheduler.running):
            for row in rows:
                self._copy_piece(row)
            if monotonic() > end and any(row.prefix is None for row in self.scheduler.running):
                return

    def _copy_piece(self, row: Row) -> None:
        assert row.prefix is not None
        stop = min(row.num_computed + COPY_TOKENS, row.request.num_reused)
        self._kv_cache.write(row.index, row.prefix.pairs, row.num_computed, stop)
        row.num_computed = stop
        if stop == row.request.num_reused:
            row.prefix = None

    # --- the parts of a commit ---

    def _append(self, row: Row, token: Token) -> None:
        request = row.request
        if self._room(request) == 0:
            self._end(row, RequestOutput(finish_reason=LENGTH, prompt=tuple(row.prompt_tokens)))
            return
        if not request.answer:
            request.first_token = monotonic()
            self._keep_prefix(row, request.prompt)
            if request.is_scored:
                self._report(request, RequestOutput(prompt=tuple(row.prompt_tokens)))
        self.totals["answer_tokens"] += 1
        request.answer.append(token.id)
        self._advance(row, token)

    def _advance(self, row: Row, token: Token) -> None:
        request, params = row.request, row.request.params
        is_long_enough = len(request.answer) > params.min_tokens
        ended = token.id in row.sampler.ends or (token.id in params.stop_ids and is_long_enough)
        complete = row.sampler.accept(token.id)
        text = "" if ended else row.detokenizer.add(token.id)
        finish_reason = STOP if ended or complete or row.detokenizer.is_stopped else None
        if finish_reason is None and len(request.answer) >= self._room(request):
            finish_reason = LENGTH
        if finish_reason is None:
            self._report(request, RequestOutput((token,), text))
        else:
            self._end(row, RequestOutput((token,), text + row.detokenizer.finish(), finish_reason))

    def _room(self, request: Request) -> int:
        room = self._context - len(request.prompt)
        most = request.params.max_tokens
        return room if most is None else min(room, most)

    def _end(self, row: Row, output: RequestOutput) -> None:
        """Takes a row out, and reports why."""
        if output.finish_reason != FAILED:
            self._keep_prefix(row, row.tokens(0, row.num_computed))
        self.scheduler.finish(row)
        self._adapters.release(row.slot)
        self._forward.forget(row)
        self._report(row.request, output)

    def _keep_prefix(self, row: Row, tokens: Sequence[int]) -> None:
        owner = _owner(row.request)
        if self._prefix_cache.wants(owner, tokens, self._kv_cache.token_bytes):
            self._prefix_cache.keep(owner, tokens, self._kv_cache.read(row.index, len(tokens)))

    def _report(self, request: Request, output: RequestOutput) -> None:
        if not request.report(output):
            self._queue.cancel(request)
        if output.finish_reason is not None:
            self._queue.ended()


def _owner(request: Request) -> tuple[str, AdapterRef | None]:
    return request.tenant, request.adapter
