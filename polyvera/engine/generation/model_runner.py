"""ModelRunner: a model of transformers while an engine holds it, and what an engine must know of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import banks_of, eject
from polyvera.adapter.targets import linear_layers
from polyvera.engine.generation.attention import NAME, AttentionMetadata, Span, attending, register
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.errors import LayoutError, ServeError
from polyvera.model.config import CAUSAL_LM, context_length, kind_of, text_config, vocabulary_size
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# How far the packed forward may be from the model's own, relative to the largest logit.
TOLERANCE = {torch.float32: 1e-3}
LOW_TOLERANCE = 5e-2
TRIAL_TOKENS = 5


class ModelRunner:
    """Gives the model the packed attention until undo(). Raises ServeError for a model that it doesn't fit.

    layers: the linear layers that read packed tokens as they lie, (1, T, in), so that each token has its adapter there.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        _check(model)
        register()
        self._model: Any = model
        self._was_training = model.training
        found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
        self._configs = [config for config in found if hasattr(config, "_attn_implementation")]
        self._before = [config._attn_implementation for config in self._configs]
        self.layers: set[str] = set()
        model.train(False)
        try:
            self._try()
        except BaseException as error:
            self.undo()
            if isinstance(error, ServeError) or not isinstance(error, Exception):
                raise
            raise ServeError(f"{type(model).__name__} cannot be called with packed rows: {error}") from error

    def check(self, ref: AdapterRef, adapter: Adapter) -> tuple[str, ...]:
        """No classes. Raises LayoutError for an adapter that a batch of packed tokens cannot hold."""
        head = adapter.layout.head
        if head:
            raise LayoutError(f"{ref} has a head of its own, {head[0][0]}, which text is not generated with")
        check_sites(ref, adapter, self.layers)
        return ()

    def undo(self) -> None:
        """The model as it was, without the banks that were put in."""
        for config, before in zip(self._configs, self._before, strict=True):
            config._attn_implementation = before
        eject(self._model)
        self._model.train(self._was_training)

    def _try(self) -> None:
        """Compares a packed forward with the model's own."""
        model = self._model
        ids = torch.arange(1, TRIAL_TOKENS + 1, device=model.device)[None] % vocabulary_size(model)
        with torch.inference_mode():
            expected = model(input_ids=ids, use_cache=False).logits
            for config in self._configs:
                config._attn_implementation = NAME
            with noting(model, self.layers, lambda shape: len(shape) == 3 and shape[0] == 1):
                found = _packed_trial(model, ids)
        far = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not far <= TOLERANCE.get(expected.dtype, LOW_TOLERANCE):
            raise ServeError(
                f"{type(model).__name__} answers otherwise when its rows are packed (relative difference {far:.2g}), "
                "so this engine cannot serve it"
            )


def check_sites(ref: AdapterRef, adapter: Adapter, layers: Collection[str]) -> None:
    """Raises LayoutError for an adapter of other layers."""
    others = [name for name in adapter.layout.site_names if name not in layers]
    if others:
        raise LayoutError(f"{ref} adapts {others[0]}, which this model lacks, or calls with tokens in another order")


@contextmanager
def noting(model: nn.Module, layers: set[str], fits: Callable[[torch.Size], bool]) -> Iterator[None]:
    """Collects the linear layers that are called with inputs of fitting shapes, and nothing else."""
    inputs: dict[str, list[torch.Size]] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.setdefault(name, []).append(args[0].shape)

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in linear_layers(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    layers.update(name for name, shapes in inputs.items() if all(map(fits, shapes)))


def _packed_trial(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of two rows in two pieces each, the last token of each alone, as the engine computes them."""
    size, cache, cut = ids.shape[1], KVCache(2, 8), ids.shape[1] - 1
    pieces = [
        (ids[:, :cut].repeat(1, 2), [*range(cut)] * 2, [Span(0, cut, 0, 1, cut), Span(cut, cut, 1, 1, cut)]),
        (ids[:, cut:].repeat(1, 2), [cut] * 2, [Span(0, 2, 0, 2, size)]),
    ]
    found = []
    for tokens, at, spans in pieces:
        positions = torch.tensor([at], device=ids.device)
        rows = torch.tensor([0] * (len(at) // 2) + [1] * (len(at) // 2), device=ids.device)
        cache.slot_mapping = rows * 8 + positions[0]
        with attending(AttentionMetadata(spans, positions[0])):
            out = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        found.append(out.logits[:, len(at) // 2 :])
    return torch.cat(found, 1)


def _check(model: PreTrainedModel) -> None:
    name = type(model).__name__
    config: Any = text_config(model.config)
    if kind_of(model) != CAUSAL_LM:
        raise ServeError(f"{name} writes no text token by token; load a causal language model")
    others = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if others:
        raise ServeError(
            f"{name} has layers of {', '.join(sorted(others))}, whose state is no cache of keys and values"
        )
    if config._attn_implementation == NAME:
        raise ServeError(f"this {name} is held by an engine already: stop that one first")
    if banks_of(model):
        raise ServeError(f"this {name} has adapters in it: eject(model) first, an engine loads its own from a store")


def context_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None, default: int) -> int:
    """Tokens of a request at most. Raises ServeError where more are asked for than the model reads."""
    known = context_length(model, tokenizer)
    if asked is not None and known is not None and asked > known:
        raise ServeError(f"max_context={asked}: {type(model).__name__} reads at most {known} tokens")
    return asked or min(default, known or default)
