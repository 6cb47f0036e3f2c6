"""Embedder: any mix of adapters of one encoder model in one batch. Texts in, vectors or classes out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polyvera.adapter.packed_linear import Packs
from polyvera.engine.adapter_cache import AdapterCache, Observe
from polyvera.engine.embedding.model_runner import EncoderRunner
from polyvera.engine.embedding.pooling import pooling_of
from polyvera.engine.embedding.request import Classes, EncodeRequest
from polyvera.engine.embedding.steps import EncoderCore
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.model_runner import context_of
from polyvera.engine.lifecycle import AdapterEngine
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.stats import EngineStats
from polyvera.errors import ClosedError, SamplingError, ServeError
from polyvera.model.config import CLASSIFICATION, ENCODER, kind_of, trained_labels, vocabulary_size
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from polyvera.model.load import Base

DEFAULT_CONTEXT = 8192
MAX_TEXTS = 2048
CPU_CHUNK, GPU_CHUNK = 2048, 16_384


class Embedder:
    """Serves any mix of adapters of one encoder in one batch.

    The model is the encoder's own from start() to stop(), which gives it back as it was. It is one for sequence
    classification, whose head each adapter with a head replaces for its own texts, with as many classes as it has; or a
    bare one, for vectors alone. limits: of which prefix_bytes has no meaning here, and chunk is the tokens of one
    batch, with what fills up its rows. registry, observe: as of a Generator. pooling: how vectors come about. Raises
    ServeError for a model that cannot be called with padded rows, or whose pooling is not told readably.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        registry: Registry | None = None,
        limits: Limits | None = None,
        observe: Observe = lambda name, seconds: None,
    ) -> None:
        given = limits or Limits()
        self.max_context = context_of(model, tokenizer, given.max_context, DEFAULT_CONTEXT)
        chunk = given.chunk or (CPU_CHUNK if model.device.type == "cpu" else GPU_CHUNK)
        self.limits = replace(given, max_context=self.max_context, chunk=chunk)
        self.model, self.tokenizer, self.registry = model, tokenizer, registry
        self.num_tokens = vocabulary_size(model)
        self.pooling = pooling_of(model.name_or_path)
        self._observe = observe
        self._queue: RequestQueue[EncodeRequest] = RequestQueue(self.limits.max_waiting)
        self._engine = AdapterEngine(self._queue)

    def start(self) -> Embedder:
        """Takes the model and begins to answer. Raises ServeError for a model that it doesn't fit."""
        if self._engine.is_started:
            raise ClosedError("this encoder was started before: make a new one")
        self._runner = EncoderRunner(self.model, self.tokenizer)
        limits = self.limits
        self._adapters = AdapterCache(
            self.model,
            self.registry,
            num_slots=limits.num_slots,
            slot_bytes=limits.slot_bytes,
            host_bytes=limits.host_bytes,
            packs=Packs(),  # many tokens at once gain nothing from packed weights, so none are used
            check=self._runner.check,
            observe=self._observe,
            wake=self._queue.wake.set,
        )
        self._core = EncoderCore(self._runner, self.pooling, self._adapters, self._queue, limits, self._observe)
        self._engine.start(self._core, self._adapters, nullcontext)
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

    def preload(self, ref: AdapterRef, *, pin: bool = False, timeout_s: float = 60.0) -> None:
        """Makes an adapter resident, and keeps it so where pin; returns when it is. Raises as its load does."""
        self._engine.preload(ref, pin=pin, timeout_s=timeout_s)

    def pin(self, ref: AdapterRef) -> None:
        """Makes an adapter resident for good."""
        self.preload(ref, pin=True)

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""
        self._engine.unpin(ref)

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; texts that use it finish with it."""
        self._engine.evict(ref)

    @property
    def failed(self) -> BaseException | None:
        """The error that ended the encoder."""
        return self._engine.failed

    def stats(self) -> EngineStats:
        """What runs and waits, as it was at the last step, and what is resident."""
        return self._engine.stats() if self._engine.is_started else EngineStats(num_slots=self.limits.num_slots)

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        return self._engine.drain(timeout_s)

    def stop(self) -> None:
        """Ends what is left, and gives the model back as it was."""
        if self._engine.stop():
            self._runner.undo()

    def __enter__(self) -> Embedder:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _asked(self, call: EncodeRequest) -> Future[Any]:
        self._check(call.rows)
        call.done.add_done_callback(lambda done: self._queue.cancel(call) if done.cancelled() else None)
        self._queue.add(call)
        return call.done

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        """Raises SamplingError for texts that no step could answer."""
        if not 1 <= len(rows) <= MAX_TEXTS:
            raise SamplingError(f"{len(rows)} texts were given: a request has from 1 to {MAX_TEXTS:,}")
        last = self.num_tokens - 1
        for number, row in enumerate(rows, 1):
            if not row:
                raise SamplingError(f"text {number} has no tokens: there is nothing to read")
            if len(row) > self.max_context:
                raise SamplingError(
                    f"text {number} has {len(row)} tokens, more than the {self.max_context} that this model reads"
                )
            if not 0 <= min(row) <= max(row) <= last:
                raise SamplingError(f"text {number} has a token that is not from 0 to {last}")


def engine_for(
    base: Base,
    registry: Registry | None = None,
    limits: Limits | None = None,
    observe: Observe = lambda name, seconds: None,
) -> Generator | Embedder:
    """What serves a base: a Generator for one that writes text, an Embedder for one that reads it only."""
    reads_only = kind_of(base.model) in (CLASSIFICATION, ENCODER)
    return (Embedder if reads_only else Generator)(base.model, base.tokenizer, registry, limits, observe)
