"""Generator: any mix of adapters of one model in one batch. Requests in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from polyvera.adapter.packed_linear import PackedModel, Packs, packed
from polyvera.engine.adapter_cache import AdapterCache, Observe
from polyvera.engine.generation.grammar import Grammars
from polyvera.engine.generation.model_runner import ModelRunner, context_of
from polyvera.engine.generation.request import CANCELLED, GREEDY, Answer, Request, RequestOutput, SamplingParams
from polyvera.engine.generation.sampler import RequestSampler
from polyvera.engine.generation.steps import LOOK_AHEAD, EngineCore
from polyvera.engine.lifecycle import AdapterEngine
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.stats import EngineStats
from polyvera.errors import ClosedError, SamplingError
from polyvera.model.config import end_tokens, vocabulary_size
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_CONTEXT = 4096
CPU_CHUNK, GPU_CHUNK = 256, 2048


class Generator:
    """Serves any mix of adapters of one model in one batch.

    The model is the engine's own from start() to stop(), which gives it back as it was. registry: where adapters are
    loaded from, None for the base alone. observe: called with a name and a number of seconds ('load_s', 'queue_s',
    'step_s'). Raises ServeError for a model that cannot be packed.
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
        self.num_tokens = min(len(tokenizer), vocabulary_size(model))
        self.ends = end_tokens(model, tokenizer)
        self._grammars = Grammars(tokenizer, self.num_tokens, self.ends)
        self._observe = observe
        self._queue: RequestQueue[Request] = RequestQueue(self.limits.max_waiting)
        self._engine = AdapterEngine(self._queue)

    def start(self) -> Generator:
        """Takes the model and begins to answer. Raises ServeError for a model that cannot be packed."""
        if self._engine.is_started:
            raise ClosedError("this engine was started before: make a new one")
        self._runner = ModelRunner(self.model)
        self._packs = Packs()
        self._packed = PackedModel(self.model, self._packs)
        limits = self.limits
        self._adapters = AdapterCache(
            self.model,
            self.registry,
            num_slots=limits.num_slots,
            slot_bytes=limits.slot_bytes,
            host_bytes=limits.host_bytes,
            packs=self._packs,
            check=self._runner.check,
            observe=self._observe,
            wake=self._queue.wake.set,
        )
        self._core = EngineCore(
            self.model, self.tokenizer, self._adapters, self._queue, limits, self.num_tokens, self._observe
        )
        self._engine.start(self._core, self._adapters, self._within)
        return self

    def submit(
        self,
        prompt: Sequence[int],
        adapter: AdapterRef | None = None,
        params: SamplingParams = GREEDY,
        *,
        on_output: Callable[[RequestOutput], None],
        tenant: str = "",
    ) -> Request:
        """Asks for one answer; on_output gets every RequestOutput, in the engine's thread, and must not block.

        Raises SamplingError for a prompt that does not fit or a choice that cannot be, BusyError, ClosedError.
        """
        self._check(prompt, params)
        grammar = None if params.schema is None else self._grammars.of(params.schema)
        sampler = RequestSampler(params, prompt, self.ends, grammar)
        request = Request(prompt, adapter, params, on_output, tenant, sampler=sampler)
        self._queue.add(request)
        if self._queue.num_waiting <= LOOK_AHEAD:  # not at the next step: it may be under way for long
            self._adapters.prefetch(adapter)
        return request

    def answer(
        self, prompt: Sequence[int], adapter: AdapterRef | None = None, params: SamplingParams = GREEDY
    ) -> Future[Answer]:
        """submit() for those who want the whole answer at once; raises what ended it otherwise."""
        done: Future[Answer] = Future()
        parts: list[RequestOutput] = []

        def on_output(output: RequestOutput) -> None:
            parts.append(output)
            if output.error is not None:
                done.set_exception(output.error)
            elif output.finish_reason == CANCELLED:
                done.set_exception(ClosedError("the request was cancelled"))
            elif output.finish_reason is not None:
                tokens = tuple(token for part in parts for token in part.tokens)
                done.set_result(Answer(tokens, "".join(part.text for part in parts), output.finish_reason))

        self.submit(prompt, adapter, params, on_output=on_output)
        return done

    def cancel(self, request: Request) -> None:
        """Ends a request at the next step, if it has not ended; it is told so."""
        self._queue.cancel(request)

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
        """Takes an adapter out; rows that use it finish with it."""
        self._engine.evict(ref)

    @property
    def failed(self) -> BaseException | None:
        """The error that ended the engine."""
        return self._engine.failed

    def stats(self) -> EngineStats:
        """What runs and waits, as it was after the last step, and what is resident."""
        return self._engine.stats() if self._engine.is_started else EngineStats(num_slots=self.limits.num_slots)

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        return self._engine.drain(timeout_s)

    def stop(self) -> None:
        """Cancels what is left, and gives the model back as it was."""
        if self._engine.stop():
            self._packed.undo()
            self._runner.undo()

    def __enter__(self) -> Generator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def _within(self) -> Iterator[None]:
        """Where the steps run: kernels that are not torch's go to the device that is set in their thread."""
        device = self.model.device
        with packed(self._packs), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raises SamplingError for a request that no step could answer."""
        if not prompt:
            raise SamplingError("the prompt has no tokens: there is nothing to answer")
        last = self.num_tokens - 1
        if not 0 <= min(prompt) <= max(prompt) <= last:
            raise SamplingError(f"the prompt has a token that is not from 0 to {last}")
        asked = params.max_tokens or 1
        if len(prompt) + asked > self.max_context:
            raise SamplingError(
                f"the prompt has {len(prompt)} tokens, and with max_tokens={asked} that is more than the "
                f"{self.max_context} of this engine's context"
            )
        named = [*params.stop_ids, *(token for token, _ in params.bias)]
        beyond = [token for token in named if not 0 <= token <= last]
        if beyond:
            raise SamplingError(f"logit_bias and stop_ids: {beyond[0]} is no token; they are from 0 to {last}")
