"""EmbeddingWorkload: what the steps of an Embedder compute, and what becomes of each text's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from time import monotonic

import torch
from torch import Tensor

from polyvera.adapter.route import Route, route
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.adapter_loader import Observe
from polyvera.engine.embedding.model_runner import EncoderRunner
from polyvera.engine.embedding.request import EncodeRequest, Text, TextRow
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.engine.step_budget import fair_shares
from polyvera.errors import ClosedError, NonFiniteError, PolyveraError, ServeError
from polyvera.model.answer import Meaning
from polyvera.model.pooling import Pooling
from polyvera.model.task import EACH_TOKEN

# Vectors (rows, width), logits (rows, the most classes), logits of tokens (rows, tokens, the most), in fp32 on the CPU.
Output = tuple[Tensor, Tensor | None, Tensor | None]


class EmbeddingWorkload:
    """A Workload: batches of texts of like lengths, each of at most `chunk` tokens with what fills them up.

    A request is scheduled text by text; its adapter is acquired with the first and released with the last.
    """

    def __init__(
        self,
        runner: EncoderRunner,
        pooling: Pooling,
        adapters: AdapterCache,
        queue: RequestQueue[EncodeRequest],
        limits: Limits,
        observe: Observe,
    ) -> None:
        self._runner, self._pooling, self._adapters, self._queue = runner, pooling, adapters, queue
        self._chunk, self._observe = limits.chunk or 1, observe
        self.scheduler: Scheduler[Text, TextRow] = Scheduler(limits.max_rows)
        self.totals = dict.fromkeys(("steps", "prompt_tokens"), 0)

    def parts(self, request: EncodeRequest) -> Sequence[Text]:
        """Its texts."""
        return request.texts()

    def acquire(self, text: Text) -> int | None:
        """The slot. Raises what the load raised, or ServeError for classes without a head."""
        request = text.whole
        if request.is_over:
            raise ClosedError("its request has ended")
        if request.slot is None:
            request.slot = self._adapters.acquire(request.adapter)
            if request.slot is not None:
                self._queue.left()
                self._observe("queue_s", monotonic() - request.submitted)
                request.meaning = self._meaning(request)
        return request.slot

    def start(self, text: Text, index: int, slot: int) -> TextRow:
        """The row of a text."""
        return TextRow(text, index)

    def batches(self, most: int | None) -> Iterator[list[TextRow]]:
        """The running rows, in batches; those of requests that end meanwhile are left out."""
        for batch in batches(chosen_rows(self.scheduler.running, most), self._chunk, pads=self._runner.pads):
            open_ = [row for row in batch if not row.request.whole.is_over]
            if open_:
                yield open_

    def size(self, batch: Sequence[TextRow]) -> int:
        """Its tokens."""
        return sum(row.request.num_tokens for row in batch)

    def rows(self, batch: Sequence[TextRow]) -> Sequence[TextRow]:
        """The rows of a batch."""
        return batch

    def forward(self, batch: Sequence[TextRow]) -> Output:
        """Vectors, and logits where the model has a head."""
        slots = torch.tensor([row.request.whole.slot for row in batch])
        with route(Route(slots, held=True, once=True)):
            hidden, mask, logits = self._runner([row.request.tokens for row in batch])
            each = self._runner.token_logits(hidden) if any(map(_labels_tokens, batch)) else None
        self.totals["steps"] += 1
        self.totals["prompt_tokens"] += sum(row.request.num_tokens for row in batch)
        return self._pooling(hidden, mask).cpu(), _on_cpu(logits), _on_cpu(each)

    def sample(self, batch: Sequence[TextRow], output: Output) -> list[Tensor]:
        """Each row's vector, or the scores of its labels."""
        vectors, logits, each = output
        return [
            vectors[i]
            if not row.request.whole.is_classes
            else _scores(each, i, row)[: row.request.num_tokens]
            if _labels_tokens(row)
            else _scores(logits, i, row)
            for i, row in enumerate(batch)
        ]

    def commit(self, batch: Sequence[TextRow], samples: Sequence[Tensor]) -> None:
        """Adds each text's numbers to its request, and ends what is complete."""
        for row, numbers in zip(batch, samples, strict=True):
            if not row.request.whole.is_over:
                self._add(row, numbers)

    def end(self, request: EncodeRequest, error: PolyveraError | None) -> None:
        """Ends a request, cancelled where there is no error. Its waiting texts fail when their turn comes."""
        self._end(
            request,
            error or ClosedError("the request was cancelled, because its caller has gone or the engine is stopping"),
        )

    # --- the parts of a commit ---

    def _add(self, row: TextRow, numbers: Tensor) -> None:
        request = row.request.whole
        if not bool(numbers.isfinite().all()):
            self._end(request, NonFiniteError("this model and adapter gave NaN or inf for this text"))
            return
        self.scheduler.finish(row)
        request.found[row.request.index] = numbers
        if len(request.found) == len(request.rows):
            self._end(request)

    def _end(self, request: EncodeRequest, error: PolyveraError | None = None) -> None:
        if request.is_over:
            return
        for row in [row for row in self.scheduler.running if row.request.whole is request]:
            self.scheduler.finish(row)
        if request.slot is None:
            self._queue.left()
        else:
            self._adapters.release(request.slot)
        request.end(error)
        self._queue.ended()

    def _meaning(self, request: EncodeRequest) -> Meaning:
        own = self._adapters.meaning(request.slot) if request.slot else Meaning()
        meaning = own if own.labels else self._runner.meaning
        if request.is_classes and not meaning.labels:
            raise ServeError(
                f"{request.adapter} has no head for classes, and the base model has none either: name an adapter that "
                "was trained on labels, or ask for embeddings"
            )
        return meaning


def chosen_rows(rows: Sequence[TextRow], most: int | None) -> list[TextRow]:
    """The oldest of each tenant, of so many tokens in all, by its share of them; of each at least one."""
    if most is None:
        return list(rows)
    needs: Counter[str] = Counter()
    for row in rows:
        needs[row.request.tenant] += row.request.num_tokens
    left = fair_shares(needs, {row.request.tenant: row.request.weight for row in rows}, most)
    has_one, chosen = set(), []
    for row in sorted(rows, key=lambda row: (row.request.number, row.request.index)):
        tenant = row.request.tenant
        if tenant not in has_one or row.request.num_tokens <= left[tenant]:
            has_one.add(tenant)
            left[tenant] -= row.request.num_tokens
            chosen.append(row)
    return chosen


def batches(rows: Sequence[TextRow], most: int, *, pads: bool = True) -> Iterator[list[TextRow]]:
    """Rows of like lengths, at most so many tokens with what fills them up; a longer row is alone.

    pads: whether they may be filled up; else they are of one length.
    """
    batch: list[TextRow] = []
    for row in sorted(rows, key=lambda row: row.request.num_tokens):  # so that the next is the longest yet
        num = row.request.num_tokens
        may_join = pads or not batch or batch[0].request.num_tokens == num
        if batch and not (may_join and (len(batch) + 1) * num <= most):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _labels_tokens(row: TextRow) -> bool:
    whole = row.request.whole
    return whole.is_classes and whole.meaning.row.predicts == EACH_TOKEN


def _scores(logits: Tensor | None, i: int, row: TextRow) -> Tensor:
    assert logits is not None
    return row.request.whole.meaning.scores(logits[i])


def _on_cpu(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits.float().cpu()
