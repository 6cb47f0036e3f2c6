"""LLM: a base model and the adapters of a store, which answer prompts in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from polyvera.data.chat_turns import message_of
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import GREEDY, Answer, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import SamplingError
from polyvera.model.load import Base, load_base, place
from polyvera.model.message import Message
from polyvera.model.prompt import TEMPLATE, Prompt, prompt_ids
from polyvera.store.opened import opened
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

Turn = Message | Mapping[str, Any]
AnyPrompt = str | Sequence[Turn]
Which = str | AdapterRef | None


class LLM:
    """A causal language model that answers any mix of a store's adapters in one batch.

    model: a folder, a hub id, a wheel such as smollm2, or what load_base() gave.
    store: a registry, or its folder or URL; by default that of POLYVERA_STORE, else 'adapters'.
    limits: rows in a batch, tokens of context, resident adapters and their memory.
    dtype: of the model's numbers: 'auto', 'float32', 'bfloat16' or 'float16'.
    device: such as 'cpu' or 'cuda:1'; by default a GPU where there is one.

    The model is the LLM's own until close(), or the end of a `with`. Raises RecipeError where there is no such model,
    ServeError for one that cannot be served.

        with LLM("smollm2", store="adapters") as llm:
            llm.generate(["Order: two lattes"], adapter="cafe/tickets", params=SamplingParams(max_tokens=20))
    """

    def __init__(
        self,
        model: str | Base,
        *,
        store: str | Path | Registry | None = None,
        limits: Limits | None = None,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        self.registry = opened(store)
        self._prompt_forms: dict[AdapterRef, str] = {}
        self.name = model if isinstance(model, str) else str(model.model.config.name_or_path)
        self.base = place(load_base(model, dtype=dtype) if isinstance(model, str) else model, device)
        self.engine = Generator(self.base.model, self.base.tokenizer, self.registry, limits).start()

    def generate(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt],
        adapter: Which | Sequence[Which] = None,
        params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    ) -> list[str]:
        """The text of every answer, in the order of the prompts.

        prompts: N texts, or conversations of messages {'role': ..., 'content': ...}, which go through the model's chat
            template; one prompt alone counts as a list of it. A text for an adapter that was trained on chats is the
            user's turn of one.
        adapter: one for all, or N of them: 'name' for the latest version, 'name@3', 'name@alias', an AdapterRef, or
            None for the bare base model.
        params: how tokens are chosen, one for all or N of them; by default the likeliest, until the model ends its
            answer or its context is full.

        Raises NotFoundError for an adapter that the store has not, PromptError for a conversation without a template,
        SamplingError for a prompt that does not fit or lists that are not one a prompt, ClosedError after close().
        """
        several = _list(prompts)
        refs = [self._ref(one) for one in _each(adapter, len(several), "adapter")]
        ids = [prompt_ids(self.base.tokenizer, self._asked(one, ref)) for one, ref in zip(several, refs, strict=True)]
        asked = zip(ids, refs, _each(params, len(several), "params"), strict=True)
        return [answer.text for answer in self._answers(asked)]

    def close(self) -> None:
        """Ends what runs and gives the model back as it was. A second call does nothing."""
        self.engine.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, store={self.registry.url!r})"

    def _ref(self, which: Which) -> AdapterRef | None:
        return self.registry.resolve(which) if isinstance(which, str) else which

    def _asked(self, given: AnyPrompt, ref: AdapterRef | None) -> Prompt:
        """The prompt in the form that the adapter was trained on; the base takes it as it is."""
        if not isinstance(given, str):
            return tuple(one if isinstance(one, Message) else message_of(i, one) for i, one in enumerate(given, 1))
        if ref is not None and ref not in self._prompt_forms:
            self._prompt_forms[ref] = self.registry.get(ref).prompt_form
        is_chat = ref is not None and self._prompt_forms[ref] == TEMPLATE
        return (Message("user", given),) if is_chat else given

    def _answers(self, asked: Iterable[tuple[list[int], AdapterRef | None, SamplingParams]]) -> Iterator[Answer]:
        """The answers in their order; no more are under way than the engine lets wait."""
        running: deque[Future[Answer]] = deque()
        for ids, ref, params in asked:
            if len(running) == self.engine.limits.max_waiting:
                yield running.popleft().result()
            running.append(self.engine.answer(ids, ref, params))
        yield from (one.result() for one in running)


def _list(prompts: Any) -> list[AnyPrompt]:
    """The prompts; a text or a conversation alone is one of them."""
    is_one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Message | Mapping))
    return [prompts] if is_one else list(prompts)


def _each(given: Any, num: int, what: str) -> list[Any]:
    """One for each prompt. Raises SamplingError where a list has another number."""
    if given is None or isinstance(given, str | AdapterRef | SamplingParams):
        return [given] * num
    several = list(given)
    if len(several) != num:
        raise SamplingError(f"{len(several)} values of {what} for {num} prompts: give one for all, or one for each")
    return several
