"""How PEFT's target_parameters keeps the factors of a stack of experts: one matrix A and one B for all of them.

The parameters of one module are wrapped one around the other in the module's order, so that the first of two adapted
ones is found under `base_layer`. A is (experts x rank, in), B is (out, rank x experts).
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from polyvera.adapter.expert_stack import KEYS
from polyvera.adapter.layout import Shape
from polyvera.adapter.targets import base_layers
from polyvera.store.peft.tensor_names import ADAPTED

A = "A"
# Families whose experts PEFT takes the other way round, since their modules do not say how their matrices lie.
TURNED = frozenset(("llama4", "llama4_text"))


def wrapped_name(site: str, sites: Collection[str]) -> str:
    """Where PEFT keeps the factors of a stack, given all layers that are adapted: under the name of a module."""
    module, _, key = site.rpartition(".")
    outside = [other for other in KEYS[KEYS.index(key) + 1 :] if f"{module}.{other}" in sites]
    return ".".join([module, *(ADAPTED for _ in outside)])


def kept_shape(letter: str, shape: Shape) -> Shape:
    """The shape on disk of a stack's factor: A (experts, rank, in) or B (experts, out, rank)."""
    experts, first, last = shape
    return (experts * first, last) if letter == A else (first, last * experts)


def kept(letter: str, factor: Tensor) -> Tensor:
    """A stack's factor as it is on disk."""
    return (factor if letter == A else factor.permute(1, 2, 0)).reshape(kept_shape(letter, tuple(factor.shape)))


def unkept(letter: str, stored: Tensor, shape: Shape) -> Tensor:
    """The inverse of kept()."""
    if letter == A:
        return stored.reshape(shape)
    experts, tall, rank = shape
    return stored.reshape(tall, rank, experts).permute(2, 0, 1).contiguous()


def named_parameters(names: Collection[str], model: nn.Module) -> set[str]:
    """The parameters of a model that target_parameters stands for."""
    endings = tuple(f".{name}" for name in names)
    found = {name for name, _ in model.named_parameters()}
    return {name for name in found if name in names or name.endswith(endings)} if names else set()


def is_all_stacks(names: Collection[str], model: nn.Module) -> bool:
    """Whether all parameters that these names stand for, if any, are stacks of experts that PEFT does not turn."""
    named, layers = named_parameters(names, model), base_layers(model)
    return named <= set(layers) and not (named and model_type(model) in TURNED)


def model_type(model: nn.Module) -> str:
    """The family of a model, '' where its configuration names none."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))
