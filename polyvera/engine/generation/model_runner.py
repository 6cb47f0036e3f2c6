"""ModelRunner: a model of transformers while an engine holds it, and what an engine must know of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject
from polyvera.engine.generation.attention import NAME, AttentionMetadata, Span, attending, register
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.engine.trial import check_close, check_free, check_sites, recording, trying
from polyvera.errors import LayoutError, ServeError
from polyvera.model.config import CAUSAL_LM, kind_of, text_config, vocabulary_size
from polyvera.model.rms_norm import fused_norms
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
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
        self._norms = ExitStack()
        model.train(False)
        with trying(model, self.undo, "packed"):
            self._try()

    def check(self, ref: AdapterRef, adapter: Adapter) -> tuple[str, ...]:
        """No classes. Raises LayoutError for an adapter that a batch of packed tokens cannot hold."""
        head = adapter.layout.head
        if head:
            raise LayoutError(f"{ref} has a head of its own, {head[0][0]}, which is not used to generate text")
        check_sites(ref, adapter, self.layers)
        return ()

    def undo(self) -> None:
        """The model as it was, without the banks that were put in."""
        self._norms.close()
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
            self._norms.enter_context(fused_norms(model))
            with recording(model, self.layers, lambda shape: len(shape) == 3 and shape[0] == 1):
                found = _packed_trial(model, ids)
        check_close(model, found, expected, "packed")


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
        raise ServeError(f"{name} does not generate text token by token: load a causal language model")
    others = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if others:
        raise ServeError(
            f"{name} has layers of {', '.join(sorted(others))}, whose state is not a cache of keys and values"
        )
    check_free(model, config._attn_implementation == NAME)
