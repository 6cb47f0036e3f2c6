"""No bytes from outside are run."""

from __future__ import annotations

import ast

import pytest
from source_tree import each_file, parsed

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING = {("torch", "load"), ("pd", "read_pickle"), ("pandas", "read_pickle")}


def unpickling(tree: ast.Module) -> list[int]:
    """Lines that import a pickling library, or reach for torch.load and its kin."""
    plain = {call.func for call in ast.walk(tree) if isinstance(call, ast.Call) and _loads_tensors_alone(call)}
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.stmt | ast.expr) and n not in plain)
    return [n.lineno for n in nodes if _unpickles(n)]


def _loads_tensors_alone(call: ast.Call) -> bool:
    """Whether it is torch.load(..., weights_only=True), which refuses all but tensors and plain containers."""
    return any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)


def _unpickles(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return any(alias.name.split(".")[0] in PICKLES for alias in names)
        case ast.ImportFrom(module=module, names=names):
            taken = {(module, alias.name) for alias in names}
            return (module or "").split(".")[0] in PICKLES or not UNPICKLING.isdisjoint(taken)
        case ast.Attribute(value=ast.Name(id=owner), attr=attr):
            return (owner, attr) in UNPICKLING
        case ast.Call(keywords=keywords):
            return any(k.arg == "allow_pickle" and getattr(k.value, "value", True) is not False for k in keywords)
    return False


@each_file
def test_nothing_is_unpickled(file):
    assert unpickling(parsed(file)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "from torch import load",
        "load = torch.load",
        "np.load(f, allow_pickle=True)",
        "import joblib.numpy_pickle",
        "def f():\n    import dill",
    ],
)
def test_unpickling_is_seen(source):
    assert unpickling(ast.parse(source)) != []
    assert unpickling(ast.parse("import json; json.load(f); np.load(f, allow_pickle=False); model.load(x)")) == []
    assert unpickling(ast.parse("torch.load(f, weights_only=True)")) == []
