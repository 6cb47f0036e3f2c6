"""One frozen model, one frozen random basis, ten thousand adapters.

Every name is imported when it is first used, so `import polyvera` loads neither torch nor transformers. `train` and
`evaluate` are packages that can be called, so each is the same thing in whatever order modules are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter
    from polyvera.adapter.bank import Bank
    from polyvera.adapter.inject import eject, extract, inject
    from polyvera.adapter.merge import Switch, merge
    from polyvera.adapter.method import METHODS
    from polyvera.adapter.route import route
    from polyvera.adapter.spec import AdapterSpec
    from polyvera.engine.generation.request import SamplingParams
    from polyvera.errors import PolyveraError
    from polyvera.evaluate.evaluate import evaluate
    from polyvera.evaluate.generate import generate
    from polyvera.llm import LLM
    from polyvera.model.load import load_base
    from polyvera.model.message import Message
    from polyvera.plan import cost
    from polyvera.store.load import load
    from polyvera.store.peft import export_peft, import_peft
    from polyvera.store.reference import AdapterRef
    from polyvera.store.registry import Registry
    from polyvera.train.fleet.train_fleet import train_fleet
    from polyvera.train.recipe import Recipe
    from polyvera.train.trainer import train

__version__ = "0.2.0"

# The module of each name; of train and evaluate, the name is the package itself.
_HOMES = {
    "LLM": "llm",
    "METHODS": "adapter.method",
    "Adapter": "adapter.adapter",
    "AdapterRef": "store.reference",
    "AdapterSpec": "adapter.spec",
    "Bank": "adapter.bank",
    "Message": "model.message",
    "PolyveraError": "errors",
    "Recipe": "train.recipe",
    "Registry": "store.registry",
    "SamplingParams": "engine.generation.request",
    "Switch": "adapter.merge",
    "cost": "plan",
    "eject": "adapter.inject",
    "evaluate": "evaluate",
    "export_peft": "store.peft",
    "extract": "adapter.inject",
    "generate": "evaluate.generate",
    "import_peft": "store.peft",
    "inject": "adapter.inject",
    "load": "store.load",
    "load_base": "model.load",
    "merge": "adapter.merge",
    "route": "adapter.route",
    "train": "train",
    "train_fleet": "train.fleet.train_fleet",
}

__all__ = [
    "LLM",
    "METHODS",
    "Adapter",
    "AdapterRef",
    "AdapterSpec",
    "Bank",
    "Message",
    "PolyveraError",
    "Recipe",
    "Registry",
    "SamplingParams",
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
    "train",
    "train_fleet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyvera' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = import_module(f"polyvera.{_HOMES[name]}")
    return home if _HOMES[name] == name else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
