"""Engine: any mix of adapters of one model in one batch. Requests in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from polyvera.adapter.packed_linear import PackedModel, Packs, packed
from polyvera.engine.adapter_cache import Observe, Residents
from polyvera.engine.generation.grammar import Grammars
from polyvera.engine.generation.model_runner import HeldModel, context_of
from polyvera.engine.generation.request import CANCELLED, GREEDY, Answer, Output, Request, Sampling
from polyvera.engine.generation.sampler import Choice
from polyvera.engine.generation.steps import LOOK_AHEAD, Loop
from polyvera.engine.lifecycle import Runner
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import Inbox
from polyvera.engine.stats import Stats
from polyvera.errors import ClosedError, SamplingError
from polyvera.model.config import end_tokens, vocabulary_size
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_CONTEXT = 4096
CPU_CHUNK, GPU_CHUNK = 256, 2048


class Engine:
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
        self._inbox: Inbox[Request] = Inbox(self.limits.max_waiting)
        self._runner = Runner(self._inbox)

    def start(self) -> Engine:
        """Takes the model and begins to answer. Raises ServeError for a model that cannot be packed."""
        if self._runner.is_started:
            raise ClosedError("this engine was started before: make a new one")
        self._held = HeldModel(self.model)
        self._packs = Packs()
        self._packed = PackedModel(self.model, self._packs)
        limits = self.limits
        self._residents = Residents(
            self.model,
            self.registry,
            num_slots=limits.num_slots,
            slot_bytes=limits.slot_bytes,
            host_bytes=limits.host_bytes,
            packs=self._packs,
            check=self._held.check,
            observe=self._observe,
            wake=self._inbox.wake.set,
        )
        self._loop = Loop(
            self.model, self.tokenizer, self._residents, self._inbox, limits, self.num_tokens, self._observe
        )
        self._runner.start(self._loop, self._residents, partial(packed, self._packs))
        return self

    def submit(
        self,
        prompt: Sequence[int],
        adapter: AdapterRef | None = None,
        sampling: Sampling = GREEDY,
        *,
        tell: Callable[[Output], None],
        tenant: str = "",
    ) -> Request:
        """Asks for one answer; tell is called with every Output, in the engine's thread, and must not block.

        Raises SamplingError for a prompt that does not fit or a choice that cannot be, BusyError, ClosedError.
        """
        self._check(prompt, sampling)
        grammar = None if sampling.schema is None else self._grammars.of(sampling.schema)
        choice = Choice(sampling, prompt, self.ends, grammar)
        request = Request(prompt, adapter, sampling, tell, tenant, choice=choice)
        self._inbox.add(request)
        if self._inbox.num_waiting <= LOOK_AHEAD:  # not at the next step: it may be under way for long
            self._residents.want(adapter)
        return request

    def answer(
        self, prompt: Sequence[int], adapter: AdapterRef | None = None, sampling: Sampling = GREEDY
    ) -> Future[Answer]:
        """submit() for those who want the whole answer at once; raises what ended it otherwise."""
        done: Future[Answer] = Future()
        parts: list[Output] = []

        def tell(output: Output) -> None:
            parts.append(output)
            if output.problem is not None:
                done.set_exception(output.problem)
            elif output.finish == CANCELLED:
                done.set_exception(ClosedError("the request was cancelled"))
            elif output.finish is not None:
                tokens = tuple(token for part in parts for token in part.tokens)
                done.set_result(Answer(tokens, "".join(part.text for part in parts), output.finish))

        self.submit(prompt, adapter, sampling, tell=tell)
        return done

    def cancel(self, request: Request) -> None:
        """Ends a request at the next step, if it has not ended; it is told so."""
        self._inbox.cancel(request)

    def preload(self, ref: AdapterRef, *, pin: bool = False, timeout_s: float = 60.0) -> None:
        """Makes an adapter resident, and keeps it so where pin; returns when it is. Raises as its load does."""
        self._runner.preload(ref, pin=pin, timeout_s=timeout_s)

    def pin(self, ref: AdapterRef) -> None:
        """Makes an adapter resident for good."""
        self.preload(ref, pin=True)

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""
        self._runner.unpin(ref)

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it."""
        self._runner.evict(ref)

    @property
    def failed(self) -> BaseException | None:
        """The error that ended the engine."""
        return self._runner.failed

    def stats(self) -> Stats:
        """What runs and waits, as it was after the last step, and what is resident."""
        return self._runner.stats() if self._runner.is_started else Stats(num_slots=self.limits.num_slots)

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        return self._runner.drain(timeout_s)

    def stop(self) -> None:
        """Cancels what is left, and gives the model back as it was."""
        if self._runner.stop():
            self._packed.undo()
            self._held.undo()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Raises SamplingError for a request that no step could answer."""
        if not prompt:
            raise SamplingError("the prompt has no tokens: there is nothing to answer")
        last = self.num_tokens - 1
        if not 0 <= min(prompt) <= max(prompt) <= last:
            raise SamplingError(f"the prompt has a token that is not from 0 to {last}")
        asked = sampling.max_tokens or 1
        if len(prompt) + asked > self.max_context:
            raise SamplingError(
                f"the prompt has {len(prompt)} tokens, and with max_tokens={asked} that is more than the "
                f"{self.max_context} of this engine's context"
            )
        named = [*sampling.stop_ids, *(token for token, _ in sampling.bias)]
        beyond = [token for token in named if not 0 <= token <= last]
        if beyond:
            raise SamplingError(f"logit_bias and stop_ids: {beyond[0]} is no token; they are from 0 to {last}")
