"""Names for target_modules by which PEFT finds exactly the adapted layers among all modules of a model."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import is_named
from polyvera.adapter.targets import WORDS


def target_names(adapter: Adapter, model: nn.Module | None) -> list[str] | str:
    """The spec's own endings where they name the adapted layers and nothing else of the model; else full names.

    Full names that are endings of other modules' become one expression. model: None where the base is not at hand,
    which leaves full names.
    """
    names = [site.name for site in adapter.layout.sites if not site.num_experts]
    if model is None or not names:
        return sorted(names)
    modules = [name for name, _ in model.named_modules() if name]
    endings = _endings(adapter)
    if endings and named_by(endings, modules) == set(names):
        return sorted(endings)
    if named_by(names, modules) == set(names):
        return sorted(names)
    return "|".join(re.escape(name) for name in sorted(names))


def named_by(endings: Collection[str], modules: Collection[str]) -> set[str]:
    """The modules that a list of names in target_modules stands for."""
    return {module for module in modules if any(is_named(module, ending) for ending in endings)}


def _endings(adapter: Adapter) -> set[str]:
    """The spec's own endings, none where it chose layers in another way."""
    given = adapter.spec.targets
    if adapter.spec.exclude or given in WORDS:
        return set()
    if isinstance(given, str):
        return set() if re.search(r"[^\w.\-]", given) else {given}
    return set(given)
