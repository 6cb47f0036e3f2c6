"""Tiny models, adapters and tokenizers to serve, and what each adapter answers alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import GREEDY, Answer, Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.engine.protocol import GenerationEngine
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

SPECIAL = ["<s>", "</s>", "<pad>"]
WORDS = ["th", "the", "in", "er", "tr", "ue"]
LONGEST_WAIT = 120.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and a few pairs are; the pieces of a character may come one by one."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("t", "r"), ("u", "e")]
    bpe = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_llama(context: int = 160, layers: int = 2, width: int = 32) -> LlamaForCausalLM:
    """Grouped queries, biases, and weights so large that two tokens are never equally likely."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        attention_bias=True,
        bos_token_id=0,
        eos_token_id=[1, 95, 127, 157],
        pad_token_id=2,
        initializer_range=0.25,
    )
    return LlamaForCausalLM(config).eval()


def make_adapter(model: torch.nn.Module, spec: AdapterSpec, seed: int, size: float = 0.3) -> Adapter:
    """A trained adapter's stand-in: every trained number moved at random. The model is as it was."""
    bank = inject(model, spec)
    noise = size * torch.randn(bank.flat.shape, generator=torch.Generator().manual_seed(seed))
    bank._write(0, bank.take(bank.first) + noise[0])
    adapter = extract(bank, bank.first, model)
    eject(model)
    return adapter


def make_prompt(seed: int, low: int = 1, high: int = 60, vocabulary: int = 250) -> list[int]:
    """Random tokens."""
    draw = random.Random(seed)
    return [draw.randrange(3, vocabulary) for _ in range(draw.randint(low, high))]


class Solo:
    """What one adapter answers alone: generate() of transformers, with nothing else in the model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = copy.deepcopy(model)
        self._known: dict[object, list[int]] = {}
        self._kept: dict[int, Adapter | None] = {}  # so that no two adapters ever have one id

    def answers(self, adapter: Adapter | None, prompt: Sequence[int], num: int, **given: object) -> list[int]:
        """The greedy answer, at most num tokens; given: more of generate()."""
        key = (id(adapter), tuple(prompt), num, repr(given))
        if key not in self._known:
            self._kept[id(adapter)] = adapter
            self._known[key] = self._generated(adapter, prompt, max_new_tokens=num, **given)
        return self._known[key]

    def logits(self, adapter: Adapter | None, tokens: Sequence[int]) -> torch.Tensor:
        """Of every position, (tokens, vocabulary)."""
        with self._holding(adapter), torch.no_grad():
            return self.model(torch.tensor([list(tokens)])).logits[0]

    @contextmanager
    def _holding(self, adapter: Adapter | None) -> Iterator[None]:
        if adapter is not None:
            load(self.model, adapter)
        try:
            yield
        finally:
            eject(self.model)

    def _generated(self, adapter: Adapter | None, prompt: Sequence[int], **given: object) -> list[int]:
        with self._holding(adapter), torch.inference_mode():
            ids = torch.tensor([list(prompt)])
            whole = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **given)
        return whole[0, len(prompt) :].tolist()


class Heard:
    """Everything that a request is told."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.ended = Event()

    def __call__(self, output: RequestOutput) -> None:
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.ended.set()

    @property
    def ids(self) -> list[int]:
        return [token.id for output in self.outputs for token in output.tokens]

    @property
    def pieces(self) -> list[str]:
        return [output.text for output in self.outputs]

    def wait(self) -> RequestOutput:
        """The last output."""
        assert self.ended.wait(LONGEST_WAIT), "no end was told"
        return self.outputs[-1]


def all_of(futures: Iterable[Future[Answer]]) -> list[Answer]:
    return [future.result(LONGEST_WAIT) for future in futures]


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end, pause = monotonic() + LONGEST_WAIT, Event()
    while not condition():
        assert monotonic() < end, "it never came true"
        pause.wait(0.002)


def publish(root: Path, adapters: Iterable[Adapter], name: str = "team/a") -> tuple[Registry, list[AdapterRef]]:
    """A registry with each adapter under a name of its own."""
    registry = Registry(root)
    return registry, [registry.put(f"{name}{i}", adapter) for i, adapter in enumerate(adapters)]


def submit(
    engine: GenerationEngine,
    prompt: Sequence[int],
    adapter: AdapterRef | None = None,
    params: SamplingParams = GREEDY,
    tenant: str = "",
) -> tuple[Request, Heard]:
    heard = Heard()
    return engine.submit(Request(prompt, adapter, params, heard, tenant)), heard


def assert_nothing_is_left(engine: Generator) -> None:
    """No row, user of a slot, or number in a row of the cache is left of ended requests."""
    core, adapters = engine._core.workload, engine._adapters
    until(lambda: not engine._core.is_busy)
    scheduler, limits = core.scheduler, engine.limits
    assert not scheduler.running and sorted(scheduler._free) == list(range(limits.max_rows))
    assert not scheduler._waiting and engine._queue.num_waiting == 0
    assert all(entry.num_users == 0 for entry in adapters._taken.values())
    assert {entry.slot for entry in adapters._entries.values()} == set(adapters._taken)
    free = sum(len(slots) for slots in adapters._free.values())
    assert free + len(adapters._taken) == sum(bank.num_slots for bank in adapters.banks)
    assert all(len(bank.occupied) <= len(adapters._taken) for bank in adapters.banks)
    for pair in core._kv_cache._layers.values():
        assert not any(bool(storage[:, :-1].any()) for storage in pair)  # the last place is nobody's
    kept = [prefix for prefixes in core._prefix_cache._kept.values() for prefix in prefixes]
    assert len(kept) == len(core._prefix_cache) and sum(p.num_bytes for p in kept) == core._prefix_cache.num_bytes
    assert core._prefix_cache.num_bytes <= limits.prefix_bytes


SMALL = Limits(max_rows=4, chunk=16, num_slots=3, prefix_bytes=1 << 20)
