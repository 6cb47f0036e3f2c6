"""One frozen model, one frozen random basis, ten thousand adapters.

Every name is imported when it is first used, so `import polyvera` loads neither torch nor transformers. The room
polyvera.train holds the name of its own function: `from polyvera.train.trainer import train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter
    from polyvera.adapter.inject import eject, extract, inject, load
    from polyvera.adapter.merge import Switch, merge
    from polyvera.adapter.method import METHODS
    from polyvera.adapter.route import route
    from polyvera.adapter.spec import AdapterSpec
    from polyvera.evaluate.evaluate import evaluate
    from polyvera.evaluate.generate import generate
    from polyvera.model.load import load_base
    from polyvera.plan import cost
    from polyvera.store.peft import export_peft, import_peft
    from polyvera.store.registry import Registry
    from polyvera.train.recipe import Recipe

__version__ = "0.2.0"

_HOMES = {
    "METHODS": "adapter.method",
    "Adapter": "adapter.adapter",
    "AdapterSpec": "adapter.spec",
    "Recipe": "train.recipe",
    "Registry": "store.registry",
    "Switch": "adapter.merge",
    "cost": "plan",
    "eject": "adapter.inject",
    "evaluate": "evaluate.evaluate",
    "export_peft": "store.peft",
    "extract": "adapter.inject",
    "generate": "evaluate.generate",
    "import_peft": "store.peft",
    "inject": "adapter.inject",
    "load": "adapter.inject",
    "load_base": "model.load",
    "merge": "adapter.merge",
    "route": "adapter.route",
}

__all__ = [
    "METHODS",
    "Adapter",
    "AdapterSpec",
    "Recipe",
    "Registry",
    "Switch",
    "cost",
    "eject",
    "evaluate",
    "export_peft",
    "extract",
    "generate",
    "import_peft",
    "inject",
    "load",
    "load_base",
    "merge",
    "route",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyvera' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"polyvera.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
