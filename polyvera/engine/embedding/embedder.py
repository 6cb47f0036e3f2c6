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

    The model is the encoder's own from start() to stop(), which gives it back as it was. It is one for sequence
    classification, whose head each adapter with a head replaces for its own texts, with as many classes as it has; or a
    bare one, for vectors alone. limits: prefix_bytes has no meaning here, and chunk is the tokens of one batch, with
    what fills up its rows. registry, observe: as of an AdapterEngine. start() raises ServeError for a
    model that cannot be called with padded rows, or whose pooling cannot be read.
    """

    defaults = DefaultLimits(context=8192, cpu_chunk=2048, gpu_chunk=16_384)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that may be asked about."""
        return vocabulary_size(self.model)

    @cached_property
    def pooling(self) -> Pooling:
        """How vectors come about. Raises ServeError where the model's files about it cannot be read."""
        return pooling_of(self.model.name_or_path)

    @property
    def generation(self) -> None:
        """None: it writes no text."""

    @property
    def embedding(self) -> Embedder:
        """Itself: it gives vectors and classes."""
        return self

    def embed(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = ""
    ) -> Future[Tensor]:
        """Token rows to their vectors, (texts, width) in fp32 on the CPU. Cancelling the future frees what waits.

        Raises SamplingError for a text that does not fit, ServeError for a model whose vectors are not computed here,
        BusyError, ClosedError.
        """
        if self.pooling.refusal:
            raise ServeError(f"this model gives no embeddings here: {self.pooling.refusal}")
        return self._asked(EncodeRequest(rows, adapter, tenant, is_classes=False))

    def classify(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = ""
    ) -> Future[Classes]:
        """Token rows to the probabilities of the adapter's classes. As embed(), and ServeError without a head."""
        if adapter is None and not trained_labels(self.model):
            raise ServeError(
                "the base model has no trained head for classes: name an adapter that was trained on labels, or ask "
                "for embeddings"
            )
        return self._asked(EncodeRequest(rows, adapter, tenant, is_classes=True))

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
            raise SamplingError(f"{len(rows)} texts were given: a request has from 1 to {MAX_TEXTS:,}")
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
