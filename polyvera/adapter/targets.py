"""find_sites: which layers of a model an adapter is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from polyvera.adapter.base_layer import is_linear, widths
from polyvera.adapter.expression import Expressions
from polyvera.adapter.layer import AdaptedHead, AdaptedLinear
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import TargetError, did_you_mean

ALL_LINEAR = "all-linear"
DEFAULT = "default"
# The query and value projections under the names that model families give them; the first that matches is taken.
DEFAULT_TARGETS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
    ("Wqkv",),
)
HEAD_NAMES = ("score", "classifier", "classification_head", "qa_outputs", "pre_classifier")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its name in the bare model, adapted or not; a head's inner layers are left out."""
    found: dict[str, nn.Module] = {}
    for name, module in _walk(model, ""):
        if is_linear(module):
            found[name] = module
    return found


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(child, AdaptedLinear):
            yield full, child.base
        elif not isinstance(child, AdaptedHead):
            yield full, child
            yield from _walk(child, full)


def find_sites(model: nn.Module, spec: AdapterSpec) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of every layer that the spec adapts, by name, in the model's order.

    Raises TargetError for a target or an exclusion that matches no linear layer, with the nearest name.
    """
    layers = linear_layers(model)
    heads = {n for n in layers if any(n == h or n.startswith(h + ".") for h in spec.head)}
    chosen = _chosen(model, layers, spec.targets)
    dropped = {name for ending in spec.exclude for name in _ending(model, layers, ending, "exclude")}
    sites = {name: widths(layers[name]) for name in layers if name in chosen - dropped - heads}
    if not sites:
        raise TargetError(f"targets={spec.targets!r} without exclude={spec.exclude!r} leaves no layer to adapt")
    return sites


def _chosen(model: nn.Module, layers: dict[str, nn.Module], targets: str | tuple[str, ...]) -> set[str]:
    if targets == ALL_LINEAR:
        output = output_of(model)
        return {n for n in layers if n != output and n.split(".")[0] not in HEAD_NAMES}
    if targets == DEFAULT:
        return _default(model, layers)
    if isinstance(targets, str) and re.search(r"[^\w.\-]", targets):
        return _fully(model, layers, targets)
    return {n for t in ((targets,) if isinstance(targets, str) else targets) for n in _ending(model, layers, t)}


def _default(model: nn.Module, layers: dict[str, nn.Module]) -> set[str]:
    for endings in DEFAULT_TARGETS:
        found = {n for n in layers if n.rpartition(".")[2] in endings}
        if found:
            return found
    raise TargetError(
        f"targets='default' knows no query and value layers in {type(model).__name__}; name some of "
        f"{', '.join(_last_names(layers))}, or 'all-linear'"
    )


def _fully(model: nn.Module, layers: dict[str, nn.Module], expression: str) -> set[str]:
    expressions = Expressions(TargetError)
    found = {n for n in layers if expressions.fullmatch("targets", expression, n)}
    if not found:
        several = "; give several layers as a list, --targets A --targets B" if "," in expression else ""
        raise TargetError(f"targets={expression!r} fully matches none of {_counted(model, layers)}{several}")
    return found


def _ending(model: nn.Module, layers: dict[str, nn.Module], ending: str, asked: str = "targets") -> set[str]:
    found = {n for n in layers if n == ending or n.endswith("." + ending)}
    if not found:
        near = did_you_mean(ending, _last_names(layers))
        raise TargetError(f"{asked}={ending!r} matches none of {_counted(model, layers)}{near}")
    return found


def _counted(model: nn.Module, layers: dict[str, nn.Module]) -> str:
    return f"the {len(layers)} linear layers of {type(model).__name__}"


def _last_names(layers: dict[str, nn.Module]) -> list[str]:
    return sorted({n.rpartition(".")[2] for n in layers})


def output_of(model: nn.Module) -> str | None:
    """The name of the layer that gives a language model's logits, None where there is none."""
    find_outputs: Any = getattr(model, "get_output_embeddings", lambda: None)
    output = find_outputs()
    return next((name for name, module in model.named_modules() if module is output), None)


def find_head(model: nn.Module) -> tuple[str, ...]:
    """The task head of a classification model by its usual names, or nothing."""
    return tuple(name for name, _ in model.named_children() if name in HEAD_NAMES)
