"""probe_layers: which layers a model's answers depend on, seen in a forward and backward over a few tokens."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.base_layer import is_quantized, layer_kind
from polyvera.adapter.route import route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.adapter.targets import base_layers
from polyvera.errors import RecipeError, one_line
from polyvera.model.config import CAUSAL_LM, ENCODER_DECODER, kind_of, vocabulary_size
from polyvera.model.inference import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, LENGTHS = 2, (24, 3)
Probe = tuple[Tensor, Tensor]
Hook = Callable[[nn.Module, Any, Tensor], Tensor]  # layer, what it was given, its output -> the output in its place
NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class LayerProbe:
    """What a model does with its layers.

    dead: no loss trains them. written: it writes over their outputs. ends: quantized ones that pass no gradient on to
    what they read, whether they are adapted or not.
    """

    dead: tuple[str, ...]
    written: tuple[str, ...]
    ends: tuple[str, ...] = ()


def probe_layers(model: PreTrainedModel, names: Collection[str]) -> LayerProbe:
    """What the model does with the named linear layers: dead ones are never called, or have no gradient.

    An expert that no token was sent to is not counted, while another one of its kind was reached. Raises RecipeError
    for a model that cannot be called with rows of tokens, long or short.
    """
    probes: dict[str, list[Probe]] = defaultdict(list)
    ends: dict[str, None] = {}
    quantized = [name for name, layer in base_layers(model).items() if is_quantized(layer)]
    with (
        hooked(model, {name: _watch(name, ends) for name in quantized}),
        hooked(model, {name: _probe(probes[name]) for name in names}),
        torch.enable_grad(),
    ):
        try:
            for length in LENGTHS:
                _loss(model, length).backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # a model's forward raises what it likes
            why = one_line(error, 200)
            raise RecipeError(f"{type(model).__name__} cannot be trained on rows of tokens: {why}") from error
    dead = {name for name in names if not any(_has_gradient(added) for added, _ in probes[name])}
    alive = {_kind(name) for name in names if name not in dead and _is_one_of_many(name)}
    return LayerProbe(
        tuple(name for name in names if name in dead and not (_is_one_of_many(name) and _kind(name) in alive)),
        tuple(name for name in names if any(out._version for _, out in probes[name])),
        tuple(ends),
    )


def check_shortest(model: PreTrainedModel, length: int) -> None:
    """Raises RecipeError where rows of so few tokens, fewer than probe_layers() tries, cannot be read."""
    if length >= min(LENGTHS):
        return
    ids = torch.zeros((ROWS, length), dtype=torch.long, device=model.device)
    try:
        with evaluating(model), route(BASE_SLOT):
            model(**_given(model, ids))
    except Exception as error:
        raise RecipeError(
            f"{type(model).__name__} cannot read rows of {length} tokens, and there are some: leave out rows of fewer "
            f"than {min(LENGTHS)} ({one_line(error, 160)})"
        ) from error


def _loss(model: Any, length: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary_size(model), (ROWS, length), generator=draw).to(model.device)
    found = model(**_given(model, ids))
    return found.loss if _writes(model) else found.logits.float().square().sum()  # type: ignore[no-any-return]


def _given(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return given | {"labels": ids} if _writes(model) else given


def _writes(model: PreTrainedModel) -> bool:
    return kind_of(model) in (CAUSAL_LM, ENCODER_DECODER)


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Forward hooks on linear layers by name, in the mode of inference, no parameter wanting a gradient.

    All is as before afterwards.
    """
    modules = {name: layer_kind(layer).module(layer) for name, layer in base_layers(model).items() if name in hooks}
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    wants = [(p, p.requires_grad) for p in model.parameters()]
    was_training = model.training
    model.train(False).requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
        model.train(was_training)


def _probe(probes: list[Probe]) -> Hook:
    def add(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        added = torch.zeros_like(out, requires_grad=True)
        probes.append((added, out + added))
        return probes[-1][1]

    return add


def _watch(name: str, ends: dict[str, None]) -> Hook:
    def note(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        if given and given[0].requires_grad and not out.requires_grad:
            ends[name] = None
        return out

    return note


def _has_gradient(added: Tensor) -> bool:
    return added.grad is not None and bool(added.grad.any())


def _is_one_of_many(name: str) -> bool:
    """Whether a layer stands in a list inside a block: an expert."""
    return len(re.findall(NUMBER, name)) > 1


def _kind(name: str) -> str:
    return re.sub(NUMBER, ".*", name)
