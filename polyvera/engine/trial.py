"""Trials: what both model runners do when they try a model before it is served."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.base_layer import layer_kind, rounds_inputs
from polyvera.adapter.inject import banks_of
from polyvera.adapter.layer_use import gets_chosen_tokens
from polyvera.adapter.targets import base_layers
from polyvera.errors import LayoutError, ServeError, one_line
from polyvera.model.config import ENCODER_DECODER, context_length, vocabulary_size
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far a batched forward may be from the model's own, relative to the largest number.
TOLERANCE = {torch.float32: 1e-3}
LOW_TOLERANCE = 5e-2
TRIAL_LENGTHS = (5, 40)


def check_served(name: str, kind: str) -> None:
    """Raises ServeError for a kind of model, of a class of that name, that no engine serves."""
    if kind == ENCODER_DECODER:
        raise ServeError(
            f"{name} is an encoder-decoder, which no engine serves: train(), evaluate() and generate() take it, and "
            "merge() writes a plain checkpoint for other servers"
        )


def check_free(model: PreTrainedModel, is_held: bool) -> None:
    """Raises ServeError for a model that another engine holds, or that has adapters in it."""
    name = type(model).__name__
    if is_held:
        raise ServeError(
            f"this {name} belongs to another engine, or has forward hooks: stop that engine, or remove them"
        )
    if banks_of(model):
        raise ServeError(
            f"this {name} has adapters in it: call eject(model) first; an engine loads adapters from a store"
        )


def trial_rows(model: Any, context: int | None) -> list[Tensor]:
    """Rows of very different length, as far as the model reads."""
    longest = min(context_length(model) or max(TRIAL_LENGTHS), context or max(TRIAL_LENGTHS))
    lengths = [min(length, longest) for length in TRIAL_LENGTHS]
    return [torch.arange(1, n + 1, device=model.device) % vocabulary_size(model) for n in lengths]


@contextmanager
def trying(model: PreTrainedModel, undo: Callable[[], None], how: str) -> Iterator[None]:
    """Undoes what fails inside. Raises ServeError: the model cannot be called with `how` rows."""
    try:
        yield
    except BaseException as error:
        undo()
        if isinstance(error, ServeError) or not isinstance(error, Exception):
            raise
        raise ServeError(
            f"{type(model).__name__} reads more of a forward than its tokens and their positions, so it cannot be "
            f"called with {how} rows and no engine serves it ({one_line(error, 160)})"
        ) from error


def check_close(model: PreTrainedModel, found: Tensor, expected: Tensor, how: str) -> None:
    """Raises ServeError where a batched forward is not the model's own; how: what is done with the rows."""
    far = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not far <= TOLERANCE.get(expected.dtype, LOW_TOLERANCE):
        raise ServeError(
            f"{type(model).__name__} answers differently when its rows are {how} (relative difference {far:.2g}), so "
            f"it cannot be served{_rounding(model)}"
        )


def _rounding(model: nn.Module) -> str:
    """Words for layers by which the tokens of a forward depend on each other."""
    for name, layer in base_layers(model).items():
        if rounds_inputs(layer):
            return (
                f" ({name} rounds what it reads to few bits, so that an answer depends on the tokens beside it: "
                "quantize the weights alone, or serve what merge --dequantize writes)"
            )
    return ""


@contextmanager
def recording(model: nn.Module, layers: set[str], num_rows: int) -> Iterator[None]:
    """Collects the layers that are called with a batch of so many rows, whose tokens may all lie in one axis."""
    inputs: dict[str, list[torch.Size]] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.setdefault(name, []).append(args[0].shape)

    hooks = [
        layer_kind(layer).module(layer).register_forward_pre_hook(partial(note, name))
        for name, layer in base_layers(model).items()
        if not gets_chosen_tokens(name)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    fitting = _fitting({shape for shapes in inputs.values() for shape in shapes}, num_rows)
    layers.update(name for name, shapes in inputs.items() if set(shapes) <= fitting)


def _fitting(shapes: Collection[torch.Size], num_rows: int) -> set[torch.Size]:
    """Those of inputs that have the rows in their first axis, or all tokens of the rows; one row is packed tokens."""
    whole = {s for s in shapes if s[0] == num_rows and (len(s) == 3 or num_rows > 1)}
    counts = {s[0] * s[1] for s in whole if len(s) == 3}
    return whole | {s for s in shapes if len(s) == 2 and s[0] in counts}


def check_text(ref: AdapterRef, adapter: Adapter) -> None:
    """Raises LayoutError for an adapter with a head of its own, which writes no text."""
    adapter.check_whole()
    head = adapter.layout.head
    if head:
        raise LayoutError(f"{ref} has a head of its own, {head[0][0]}, which is not used to generate text")


def check_sites(ref: AdapterRef, adapter: Adapter, layers: Collection[str]) -> None:
    """Raises LayoutError for an adapter of other layers than those recorded."""
    others = [name for name in adapter.layout.site_names if name not in layers]
    if others:
        raise LayoutError(f"{ref} adapts {others[0]}, which this model lacks, or calls with tokens in another order")
