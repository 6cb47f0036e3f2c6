"""ModelRunner: a model of transformers while an engine holds it, and what an engine must know of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.generation.attention import NAME, AttentionMetadata, Span, attending, register
from polyvera.engine.generation.forward import Forward
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.engine.generation.row_runner import RowRunner
from polyvera.engine.limits import Limits
from polyvera.engine.trial import (
    check_close,
    check_free,
    check_served,
    check_sites,
    check_text,
    recording,
    trial_rows,
    trying,
)
from polyvera.errors import ServeError
from polyvera.model.answer import Meaning
from polyvera.model.config import CAUSAL_LM, kind_of, rope_limit, text_config
from polyvera.model.rms_norm import fused_norms
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class ModelRunner:
    """Gives the model the packed attention until undo(). Raises ServeError for a model that it doesn't fit.

    context: the tokens of a row at most. layers: those that read packed tokens as they lie, (1, T, in) or (T, in), so
    that each token has its adapter there.
    """

    def __init__(self, model: PreTrainedModel, context: int | None = None) -> None:
        _check_packable(model)
        register()
        self._model: Any = model
        self._context = context
        self._was_training = model.training
        found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
        self._configs = [config for config in found if hasattr(config, "_attn_implementation")]
        self._before = [config._attn_implementation for config in self._configs]
        self.layers: set[str] = set()
        self._norms = ExitStack()
        model.train(False)
        with trying(model, self.undo, "packed"):
            self._try()

    def check(self, ref: AdapterRef, adapter: Adapter) -> tuple[Adapter, Meaning]:
        """The adapter, for text. Raises LayoutError for an adapter that a batch of packed tokens cannot hold."""
        check_text(ref, adapter)
        check_sites(ref, adapter, self.layers)
        return adapter, Meaning()

    def undo(self) -> None:
        """The model as it was, without the banks that were put in."""
        self._norms.close()
        for config, before in zip(self._configs, self._before, strict=True):
            config._attn_implementation = before
        eject(self._model)
        self._model.train(self._was_training)

    def forward(self, adapters: AdapterCache, kv_cache: KVCache, limits: Limits, num_tokens: int) -> Forward:
        """What computes the steps."""
        return Forward(self._model, adapters, kv_cache, limits, num_tokens)

    def _try(self) -> None:
        """Compares a packed forward with the model's own."""
        model = self._model
        rows = trial_rows(model, self._context)
        with torch.inference_mode():
            expected = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
            for config in self._configs:
                config._attn_implementation = NAME
            self._norms.enter_context(fused_norms(model))
            with recording(model, self.layers, 1):
                found = _packed_trial(model, rows)
        for own, alone in zip(found, expected, strict=True):
            check_close(model, own, alone, "packed")


def _packed_trial(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """The logits of rows in two pieces each, the last token of each alone, as the engine computes them."""
    context = max(map(len, rows)) + 1
    cache = KVCache(len(rows), context)
    cuts = [len(row) - 1 for row in rows]
    ends = [(i, row[cut:], cut, len(row)) for i, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    starts = [(i, row[:cut], 0, cut) for i, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    found = [_packed(model, cache, pieces, context) for pieces in (starts, ends)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _packed(
    model: Any, cache: KVCache, pieces: list[tuple[int, torch.Tensor, int, int]], context: int
) -> list[torch.Tensor]:
    """The logits of pieces of rows side by side: (row, tokens, first position, position after the last)."""
    device, first, spans = model.device, 0, []
    for row, tokens, _, stop in pieces:
        spans.append(Span(first, len(tokens), row, 1, stop))
        first += len(tokens)
    at = torch.cat([torch.arange(start, stop, device=device) for _, _, start, stop in pieces])
    of_row = torch.cat([torch.full((len(tokens),), row, device=device) for row, tokens, _, _ in pieces])
    cache.slot_mapping = of_row * context + at
    ids = torch.cat([tokens for _, tokens, _, _ in pieces])[None]
    with attending(AttentionMetadata(spans, at)):
        out = model(input_ids=ids, position_ids=at[None], past_key_values=cache, use_cache=True)
    return list(out.logits[0].split([len(tokens) for _, tokens, _, _ in pieces]))


def runner_for(model: PreTrainedModel, context: int | None = None) -> ModelRunner | RowRunner:
    """Holds a model, its rows packed where they can be. Raises ServeError for one that no engine serves."""
    name = type(model).__name__
    check_served(name, kind_of(model))
    if kind_of(model) != CAUSAL_LM:
        raise ServeError(f"{name} does not generate text token by token: load a causal language model")
    is_packed = text_config(model.config)._attn_implementation == NAME
    check_free(model, is_packed or bool(model._forward_pre_hooks))
    _check_rope(model, context)
    try:
        return ModelRunner(model, context)
    except ServeError as reason:
        return RowRunner(model, context, reason)


def _check_rope(model: PreTrainedModel, context: int | None) -> None:
    limit = rope_limit(model)
    if limit is not None and (context is None or context > limit):
        raise ServeError(
            f"{type(model).__name__} changes its rotary frequencies for a whole batch once one row is longer than "
            f"{limit} tokens, so rows would depend on each other: serve it with max_context={limit} or less"
        )


def _check_packable(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not getattr(type(model), "_can_set_attn_implementation", lambda: True)():
        raise ServeError(f"{name} computes attention by code of its own, which rows of several requests cannot share")
    others = set(getattr(text_config(model.config), "layer_types", None) or ()) - KNOWN_LAYERS
    if others:
        raise ServeError(
            f"{name} has layers of {', '.join(sorted(others))}, whose state is not a cache of keys and values"
        )
