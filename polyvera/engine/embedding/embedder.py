"""Embedder: any mix of adapters of one encoder model in one batch. Texts in, vectors or classes out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polyvera.adapter.packed_linear import Packs
from polyvera.engine.embedding.model_runner import EncoderRunner
from polyvera.engine.embedding.request import Classes, EncodeRequest
from polyvera.engine.embedding.workload import EmbeddingWorkload
from polyvera.engine.lifecycle import AdapterEngine, DefaultLimits, EngineParts
from polyvera.errors import ContextLengthError, SamplingError, ServeError
from polyvera.model.config import trained_labels, vocabulary_size
from polyvera.model.pooling import Pooling, pooling_of
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    pass

MAX_TEXTS = 2048


class Embedder(AdapterEngine[EncodeRequest]):
    """Serves any mix of adapters of one encoder in one batch: an EmbeddingEngine.

    The model belongs to the engine from start() to stop(), which gives it back as it was.

    model: one for sequence classification, or a bare backbone, for vectors alone. An adapter with a head of its own
        uses it for its texts, with any number of classes.
    tokenizer: the model's.
    registry, observe: as of an AdapterEngine.
    limits: chunk is the most tokens of a batch, padding included; prefix_bytes is not used.

    start() raises ServeError for a model that cannot be called with padded rows, or whose pooling cannot be read.
    """

    defaults = DefaultLimits(context=8192, cpu_chunk=2048, gpu_chunk=16_384)

    @cached_property
    def num_tokens(self) -> int:
        """How many token ids a text may have; they start at 0."""
        return vocabulary_size(self.model)

    @cached_property
    def pooling(self) -> Pooling:
        """How a text's hidden states become its vector. Raises ServeError for pooling files that cannot be read."""
        return pooling_of(self.model.name_or_path)

    @property
    def generation(self) -> None:
        """None: it does not generate text."""

    @property
    def embedding(self) -> Embedder:
        """Itself: it gives vectors and classes."""
        return self

    def embed(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Tensor]:
        """Texts to vectors: a future of (texts, width) in fp32 on the CPU. Cancelling it frees what waits.

        rows: the tokens of each text, 1 to 2,048 texts.
        adapter: None is the base.
        tenant: whose turn it is; tenants take turns. weight: its share of them.

        Raises SamplingError for a text that does not fit, ServeError for a model without embeddings, BusyError for a
        full queue, ClosedError after stop(). The future raises what the load of the adapter raises.
        """
        if self.pooling.refusal:
            raise ServeError(f"this model gives no embeddings here: {self.pooling.refusal}")
        return self._asked(EncodeRequest(rows, adapter, tenant, is_classes=False, weight=weight))

    def classify(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Classes]:
        """Texts to the probabilities of the adapter's classes. As embed(); ServeError without a trained head."""
        if adapter is None and not trained_labels(self.model):
            raise ServeError(
                "the base model has no trained head for classes: name an adapter that was trained on labels, or ask "
                "for embeddings"
            )
        return self._asked(EncodeRequest(rows, adapter, tenant, is_classes=True, weight=weight))

    def _take(self) -> EngineParts:
        runner = EncoderRunner(self.model, self.tokenizer)
        adapters = self._cache(runner, Packs())  # many tokens at once gain nothing from packed weights: none are used
        workload = EmbeddingWorkload(runner, self.pooling, adapters, self._queue, self.limits, self._observe)
        return EngineParts(workload, adapters, nullcontext, runner.undo)

    def _asked(self, request: EncodeRequest) -> Future[Any]:
        self._check(request.rows)
        request.done.add_done_callback(lambda done: self._queue.cancel(request) if done.cancelled() else None)
        self._queue.add(request)
        return request.done

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        """Raises SamplingError for texts that no step could answer."""
        if not 1 <= len(rows) <= MAX_TEXTS:
            raise SamplingError(f"{len(rows)} texts were given: a request has from 1 to {MAX_TEXTS:,} texts")
        last = self.num_tokens - 1
        for number, row in enumerate(rows, 1):
            if not row:
                raise SamplingError(f"text {number} has no tokens: there is nothing to read")
            if len(row) > self.max_context:
                raise ContextLengthError(
                    f"text {number} has {len(row)} tokens, more than the {self.max_context} that this model reads"
                )
            if not 0 <= min(row) <= max(row) <= last:
                raise SamplingError(f"text {number} has a token that is not from 0 to {last}")
