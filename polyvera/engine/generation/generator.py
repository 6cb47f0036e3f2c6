"""Generator: any mix of adapters of one model in one batch. Requests in, tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial

import torch

from polyvera.adapter.packed_linear import PackedModel, Packs, packed
from polyvera.engine.generation.grammar import Grammar, Grammars
from polyvera.engine.generation.model_runner import runner_for
from polyvera.engine.generation.request import CANCELLED, GREEDY, Answer, Request, RequestOutput, SamplingParams
from polyvera.engine.generation.sampler import RequestSampler
from polyvera.engine.generation.workload import GenerationWorkload
from polyvera.engine.lifecycle import AdapterEngine, DefaultLimits, EngineParts
from polyvera.engine.steps import LOOK_AHEAD
from polyvera.errors import ClosedError, ContextLengthError, SamplingError
from polyvera.model.config import end_tokens, vocabulary_size
from polyvera.store.reference import AdapterRef


class Generator(AdapterEngine[Request]):
    """Serves any mix of adapters of one model in one batch: a GenerationEngine.

    The model belongs to the engine from start() to stop(), which gives it back as it was.

    model: a causal language model.
    tokenizer: the model's.
    registry, limits, observe: as of an AdapterEngine.

    start() raises ServeError for a model that does not answer in a batch as it does alone.
    """

    defaults = DefaultLimits(context=4096, cpu_chunk=256, gpu_chunk=2048)

    @cached_property
    def num_tokens(self) -> int:
        """How many token ids prompts and answers may have; they start at 0."""
        return min(len(self.tokenizer), vocabulary_size(self.model))

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return end_tokens(self.model, self.tokenizer)

    @property
    def generation(self) -> Generator:
        """Itself: it generates text."""
        return self

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.num_tokens, self.ends)

    @property
    def embedding(self) -> None:
        """None: it gives no vectors."""

    def submit(self, request: Request) -> Request:
        """Asks for one answer; request.on_output gets its parts in the engine's thread. Returns the request.

        Raises SamplingError for a prompt that does not fit or for invalid parameters, BusyError for a full queue,
        ClosedError after stop().
        """
        params = request.params
        self._check(request.prompt, params)
        grammar = self._grammar(params)
        request.sampler = RequestSampler(params, request.prompt, self.ends, grammar)
        self._queue.add(request)
        if self._queue.num_waiting <= LOOK_AHEAD:  # not at the next step: it may be under way for long
            self._adapters.prefetch(request.adapter)
        return request

    def answer(
        self, prompt: Sequence[int], adapter: AdapterRef | None = None, params: SamplingParams = GREEDY
    ) -> Future[Answer]:
        """A future of the whole answer.

        prompt: tokens. adapter: None is the base. params: how tokens are chosen; greedy by default. Raises as submit();
        the future raises what ended the answer, such as a load that failed.
        """
        done, answer = Future[Answer](), Answer()

        def on_output(output: RequestOutput) -> None:
            answer.add(output)
            if output.error is not None:
                done.set_exception(output.error)
            elif output.finish_reason == CANCELLED:
                done.set_exception(ClosedError("the request was cancelled"))
            elif output.finish_reason is not None:
                done.set_result(answer)

        self.submit(Request(prompt, adapter, params, on_output))
        return done

    def cancel(self, request: Request) -> None:
        """Cancels a request at the next step, if it has not ended; on_output gets its end."""
        self._queue.cancel(request)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        if params.schema is not None:
            return self._grammars.of(params.schema)
        return None if params.grammar is None else self._grammars.of_grammar(params.grammar)

    def _take(self) -> EngineParts:
        runner, packs = runner_for(self.model, self.max_context), Packs()
        packed_model = PackedModel(self.model, packs)

        def undo() -> None:
            packed_model.undo()
            runner.undo()
            self._grammars.close()

        adapters = self._cache(runner, packs)
        workload = GenerationWorkload(
            runner, self.tokenizer, adapters, self._queue, self.limits, self.num_tokens, self._observe
        )
        return EngineParts(workload, adapters, partial(_within, self.model.device, packs), undo)

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raises SamplingError for a request that no step could answer."""
        if not prompt:
            raise SamplingError("the prompt has no tokens: there is nothing to answer", "prompt")
        last = self.num_tokens - 1
        if not 0 <= min(prompt) <= max(prompt) <= last:
            raise SamplingError(f"the prompt has a token that is not from 0 to {last}", "prompt")
        asked = 1 if params.max_tokens is None else params.max_tokens
        if len(prompt) + asked > self.max_context:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, and with max_tokens={asked} that is more than the "
                f"{self.max_context} of this engine's context",
                "prompt",
            )
        named = [*params.stop_ids, *(token for token, _ in params.bias)]
        beyond = [token for token in named if not 0 <= token <= last]
        if beyond:
            raise SamplingError(f"logit_bias and stop_ids: {beyond[0]} is not a token; tokens are from 0 to {last}")


@contextmanager
def _within(device: torch.device, packs: Packs) -> Iterator[None]:
    """Where the steps run: kernels that are not torch's go to the device that is set in their thread."""
    with packed(packs), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield
