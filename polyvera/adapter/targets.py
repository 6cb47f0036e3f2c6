"""find_sites: which layers of a model an adapter is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from polyvera.adapter.adapted_experts import AdaptedExperts
from polyvera.adapter.base_layer import BaseLayer, is_linear, widths
from polyvera.adapter.default_targets import default_targets
from polyvera.adapter.expert_stack import ExpertStack, stacks_of
from polyvera.adapter.expression import Expressions
from polyvera.adapter.layer import AdaptedHead, AdaptedLinear
from polyvera.adapter.layer_use import read_only, unused_parts
from polyvera.adapter.layout import Widths
from polyvera.adapter.spec import AdapterSpec, is_named
from polyvera.errors import TargetError, did_you_mean

ALL_LINEAR, DEFAULT, EXPERTS = "all-linear", "default", "experts"
Layers = Mapping[str, BaseLayer]
T = TypeVar("T")
HEAD_NAMES = (
    "score",
    "classifier",
    "classification_head",
    "qa_outputs",
    "pre_classifier",
    "logits_proj",
    "sequence_summary",
)
# What stands inside the backbone and behind its last block.
POOLERS = ("pooler",)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer that is called, by its name in the bare model, adapted or not; none inside of a head."""
    found: dict[str, nn.Module] = {}
    for name, module in _walk(model, ""):
        if is_linear(module):
            found[name] = module
    return found


def base_layers(model: nn.Module) -> dict[str, BaseLayer]:
    """Every layer that can be adapted by its name: the linear ones, and each stack of fused experts."""
    found: dict[str, BaseLayer] = {}
    for name, module in _walk(model, ""):
        if is_linear(module):
            found[name] = module
        found.update({f"{name}.{key}": stack for key, stack in stacks_of(module).items()})
    return found


def _walk(module: nn.Module, prefix: str, unused: frozenset[str] = frozenset()) -> Iterator[tuple[str, nn.Module]]:
    kind: type = type(module)
    begin = f"{prefix}." if prefix else ""
    unused |= {begin + name for name in read_only(kind) | unused_parts(kind)}
    for name, child in module.named_children():
        full = begin + name
        if full in unused:
            continue
        if isinstance(child, AdaptedLinear | AdaptedExperts):
            yield full, child.base
        elif not isinstance(child, AdaptedHead):
            yield full, child
            yield from _walk(child, full, unused)


def find_sites(model: nn.Module, spec: AdapterSpec) -> dict[str, Widths]:
    """The widths of every layer that the spec adapts, by name, in the model's order.

    Raises TargetError for a target or an exclusion that matches no layer, with the nearest name.
    """
    layers = base_layers(model)
    heads = {n for n in layers if any(n == h or n.startswith(h + ".") for h in spec.head)}
    chosen = _chosen(model, layers, spec.targets)
    dropped = {name for ending in spec.exclude for name in _ending(model, layers, ending, "exclude")}
    sites = {name: widths(layers[name]) for name in layers if name in chosen - dropped - heads}
    if not sites:
        less = f" without exclude={spec.exclude!r}" if spec.exclude else ""
        raise TargetError(f"targets={spec.targets!r}{less} leaves no layer of {type(model).__name__} to adapt")
    return sites


def _chosen(model: nn.Module, layers: Layers, targets: str | tuple[str, ...]) -> set[str]:
    if isinstance(targets, str) and re.search(r"[^\w.\-]", targets):
        return _fully(model, layers, targets)
    several = (targets,) if isinstance(targets, str) else targets
    sets = (WORDS[t](model, layers) if t in WORDS else _ending(model, layers, t) for t in several)
    return set().union(*sets)


def _linear(model: nn.Module, layers: Layers) -> Layers:
    """The linear layers of what reads text, those of a head left out."""
    text = of_text(model, layers).items()
    return {n: layer for n, layer in text if isinstance(layer, nn.Module) and n.split(".")[0] not in HEAD_NAMES}


def _all_linear(model: nn.Module, layers: Layers) -> set[str]:
    return set(_linear(model, layers)) - {output_of(model)}


def _experts(model: nn.Module, layers: Layers) -> set[str]:
    found = {n for n, layer in of_text(model, layers).items() if isinstance(layer, ExpertStack)}
    if not found:
        own = (n.rpartition(".")[0] for n, p in model.named_parameters() if p.dim() == 3 and "experts" in n)
        kind = next((type(model.get_submodule(name)).__name__ for name in own), "")
        of = f" but {kind}, which have a forward of their own" if kind else ""
        raise TargetError(f"targets='experts': {type(model).__name__} has no fused experts{of}; name other layers")
    return found


def _default(model: nn.Module, layers: Layers) -> set[str]:
    found = default_targets(list(_linear(model, layers)))
    if found:
        return found
    raise TargetError(
        f"targets='default' knows no query and value layers in {type(model).__name__}; name some of "
        f"{', '.join(_last_names(layers)) or 'its layers, of which none is linear'}, or 'all-linear'"
    )


# What a target may be beside the ending of a name.
WORDS: Mapping[str, Callable[[nn.Module, Layers], set[str]]] = {
    ALL_LINEAR: _all_linear,
    DEFAULT: _default,
    EXPERTS: _experts,
}


def of_text(model: nn.Module, layers: Mapping[str, T]) -> dict[str, T]:
    """The layers of the text part of a model that also sees or hears; all of them for any other."""
    inner = _text_part(model)
    return {n: layer for n, layer in layers.items() if n.startswith(inner)}


def _text_part(model: nn.Module) -> str:
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False) or "text_config" not in dir(config):
        return ""
    decoder = getattr(model, "get_decoder", lambda: None)()
    return next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")


def _fully(model: nn.Module, layers: Layers, expression: str) -> set[str]:
    expressions = Expressions(TargetError)
    found = {n for n in layers if expressions.fullmatch("targets", expression, n)}
    if not found:
        several = "; give several layers as a list, --targets A --targets B" if "," in expression else ""
        raise TargetError(f"targets={expression!r} fully matches none of {_counted(model, layers)}{several}")
    return found


def _ending(model: nn.Module, layers: Layers, ending: str, asked: str = "targets") -> set[str]:
    found = {n for n in layers if is_named(n, ending)}
    if not found:
        what = _what_is_there(model, ending) or did_you_mean(ending, _last_names(layers))
        raise TargetError(f"{asked}={ending!r} matches none of {_counted(model, layers)}{what}")
    return found


def _what_is_there(model: nn.Module, ending: str) -> str:
    """What a name that is no linear layer's stands for, in words; empty where it stands for nothing."""
    for name, module in model.named_modules():
        if is_named(name, ending):
            parent = type(model.get_submodule(name.rpartition(".")[0])).__name__
            why = (
                f"whose weight {parent} reads without calling it, or does nothing with"
                if is_linear(module)
                else "and no plain linear layer"
            )
            return f"; {name} is a {type(module).__name__}, {why}"
    for name, tensor in model.named_parameters():
        if name.endswith(f".{ending}"):
            kind = "experts" if tensor.dim() == 3 else "weights"
            return f"; {name} holds {kind} as one tensor of {tuple(tensor.shape)}, which is not adapted"
    return ""


def _counted(model: nn.Module, layers: Layers) -> str:
    return f"the {len(layers)} linear layers of {type(model).__name__}"


def _last_names(layers: Layers) -> list[str]:
    return sorted({n.rpartition(".")[2] for n in layers})


def output_of(model: nn.Module) -> str | None:
    """The name of the layer that gives a language model's logits, None where there is none."""
    find_outputs: Any = getattr(model, "get_output_embeddings", lambda: None)
    output = find_outputs()
    return next((name for name, module in model.named_modules() if module is output), None)


def layers_behind_body(model: nn.Module) -> set[str]:
    """The base layers that see the last hidden states of a language model: its output, and a head before it."""
    body = getattr(model, "base_model", model)
    prefix = next((f"{name}." for name, module in model.named_modules() if name and module is body), "")
    behind = {name for name in base_layers(model) if prefix and not name.startswith(prefix)}
    return behind | {name for name in (output_of(model),) if name}


def find_head(model: nn.Module) -> tuple[str, ...]:
    """The task head of a classification model by its usual names, or nothing."""
    return tuple(name for name, _ in model.named_children() if name in HEAD_NAMES)


def head_of(model: nn.Module, key: str) -> str | None:
    """The module behind the backbone that holds a tensor, a pooler of the backbone among them; None for all else."""
    top, _, rest = key.partition(".")
    inner = rest.partition(".")[0]
    backbone = getattr(model, "base_model_prefix", "")
    if inner in POOLERS and top == backbone:
        return f"{top}.{inner}"
    return top if rest and top != backbone and find_head(model) else None
