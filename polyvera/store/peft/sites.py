"""Which layers and heads of a model a PEFT config is for, as PEFT itself matches names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from polyvera.adapter.base_layer import BaseLayer, widths
from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layout import Shape, Widths
from polyvera.adapter.spec import DTYPES
from polyvera.adapter.targets import ALL_LINEAR, base_layers, head_of, linear_layers, output_of
from polyvera.errors import LayoutError
from polyvera.store.peft.config import Names, PeftConfig
from polyvera.store.peft.expert_parameters import named_parameters

Sites = dict[str, Widths]


def sites_of(config: PeftConfig, model: nn.Module) -> Sites:
    """The widths of every layer that PEFT adapts under this config, in the model's order. Raises LayoutError."""
    layers, linear = base_layers(model), linear_layers(model)
    chosen = _all_linear(model) if _is_all_linear(config) else {n for n in linear if _is_target(config, n)}
    chosen = {n for n in chosen if not _is_excluded(config, n)}
    chosen |= named_parameters(config.target_parameters or (), model)
    sites = {n: widths(layers[n]) for n in layers if n in chosen}
    if not sites:
        last = sorted({n.rpartition(".")[2] for n in layers})
        raise LayoutError(
            f"target_modules={config.target_modules!r} matches no linear layer of {type(model).__name__}, "
            f"which has {', '.join(last)}"
        )
    return sites


def heads_of(config: PeftConfig, model: nn.Module) -> dict[str, Shape]:
    """The shape of every tensor of the heads that are saved whole, by its name.

    A module inside another cannot be a head: what a file holds of it has to be the base's own.
    """
    names = [n for n, _ in model.named_modules(remove_duplicate=False) if n and n.endswith(config.saved)]
    heads = [n for n in names if "." not in n or head_of(model, f"{n}.") == n]
    return {key: tuple(t.shape) for key, t in head_tensors(model, heads).items()}


def widest(sites: Mapping[str, Widths]) -> tuple[int, int]:
    """(in, out) of the widest layers, which is the size of PEFT's own basis."""
    return max(w[0] for w in sites.values()), max(w[1] for w in sites.values())


def compute_dtype(layer: BaseLayer) -> str:
    """What PEFT casts an adapter to on this layer: its compute_dtype, or its weight's dtype where that is a float."""
    weight: Any = layer.weight
    dtype = getattr(layer, "compute_dtype", None) or weight.dtype
    name = str(dtype).removeprefix("torch.")
    return name if name in DTYPES else DTYPES[0]


def of_pattern(config: PeftConfig, key: str, site: str, default: Any) -> Any:
    """The value of the first pattern that ends the layer's name, as PEFT matches rank_pattern and alpha_pattern."""
    for pattern, value in (getattr(config, key) or {}).items():
        if config.expressions.match(key, rf"(.*\.)?({pattern})$", site):
            return value
    return default


def _is_all_linear(config: PeftConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR


def _all_linear(model: nn.Module) -> set[str]:
    """All but the output layer of a language model; a classifier's head is among the modules saved whole."""
    return set(linear_layers(model)) - {output_of(model)}


def _is_excluded(config: PeftConfig, name: str) -> bool:
    if any(config.expressions.match("modules_to_save", rf"(^|.*\.){m}($|\..*)", name) for m in config.saved):
        return True
    return bool(config.exclude_modules) and _is_named(config, "exclude_modules", name)


def _is_target(config: PeftConfig, name: str) -> bool:
    if not _is_named(config, "target_modules", name):
        return False
    wanted, named = config.layers_to_transform, config.target_modules
    if isinstance(named, str) or wanted is None or wanted == [] or name in (named or ()):
        return True
    return _layer_index(config, name) in ([wanted] if isinstance(wanted, int) else wanted)


def _is_named(config: PeftConfig, key: str, name: str) -> bool:
    names: Names | str | None = getattr(config, key)
    if isinstance(names, str):
        return config.expressions.fullmatch(key, names, name) is not None
    return name in (names or ()) or name.endswith(tuple(f".{n}" for n in names or ()))


def _layer_index(config: PeftConfig, name: str) -> int | None:
    patterns = config.layers_pattern
    several = [patterns] if isinstance(patterns, str) and patterns else patterns
    for expression in [rf"(?:^|.*?\.){p}\.(\d+)\." for p in several] if several else [r".*?\.[^.]*\.(\d+)\."]:
        found = config.expressions.match("layers_pattern", expression, name)
        if found:
            return int(found.groups()[-1])
    return None
