"""unreached: which layers a model's answers do not depend on, seen in one forward and backward over a few tokens."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.targets import linear_layers
from polyvera.errors import RecipeError
from polyvera.model.config import CAUSAL_LM, kind_of, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, TOKENS = 2, 24
NUMBER = re.compile(r"\.\d+(?=\.|$)")


def unreached(model: PreTrainedModel, names: Collection[str]) -> tuple[str, ...]:
    """Those of the named linear layers that no loss trains: never called, or behind a choice that has no gradient.

    An expert that no token was sent to is not counted, while another one of its kind was reached. Raises RecipeError
    for a model that cannot be called with rows of tokens.
    """
    probes: dict[str, list[Tensor]] = defaultdict(list)
    with _probed(model, names, probes), torch.enable_grad():
        try:
            _loss(model).backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # a model's forward raises what it likes
            said = " ".join(str(error).split())[:200]
            raise RecipeError(f"{type(model).__name__} cannot be trained on rows of tokens: {said}") from error
    dead = {name for name in names if not any(_has_gradient(probe) for probe in probes[name])}
    alive = {_kind(name) for name in names if name not in dead and _is_one_of_many(name)}
    return tuple(name for name in names if name in dead and not (_is_one_of_many(name) and _kind(name) in alive))


def _loss(model: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary_size(model), (ROWS, TOKENS), generator=draw).to(model.device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind_of(model) == CAUSAL_LM:
        loss: Tensor = model(**given, labels=ids).loss
        return loss
    return model(**given).logits.float().square().sum()  # type: ignore[no-any-return]


@contextmanager
def _probed(model: nn.Module, names: Collection[str], probes: dict[str, list[Tensor]]) -> Iterator[None]:
    """Adds zeros that want a gradient to the outputs of the layers, in the mode of inference; as before afterwards."""
    layers = linear_layers(model)
    hooks = [layers[name].register_forward_hook(_probe(probes[name])) for name in names]
    wants = [(p, p.requires_grad) for p in model.parameters()]
    was_training = model.training
    model.train(False).requires_grad_(False)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
        model.train(was_training)


def _probe(probes: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        probes.append(torch.zeros_like(out, requires_grad=True))
        return out + probes[-1]

    return add


def _has_gradient(probe: Tensor) -> bool:
    return probe.grad is not None and bool(probe.grad.any())


def _is_one_of_many(name: str) -> bool:
    """Whether a layer stands in a list inside a block: an expert."""
    return len(re.findall(NUMBER, name)) > 1


def _kind(name: str) -> str:
    return re.sub(NUMBER, ".*", name)
