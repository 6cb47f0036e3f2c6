"""The rules of the house, read from the source: which room imports which, who may name a method, how long is long."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvera.adapter.method import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "polyvera"
# A room may import itself and the rooms of a lower number. `polyvera` itself is lazy, and no room imports it.
ROOMS = {
    "errors": 0,
    "callable_package": 0,
    "adapter": 1,
    "settings": 1,
    "plan": 2,
    "model": 2,
    "store": 3,
    "data": 3,
    "evaluate": 4,
    "engine": 4,
    "vllm": 4,
    "replicas": 5,
    "train": 5,
    "server": 6,
    "compare": 6,
    "cli": 7,
    "llm": 6,
    "__main__": 8,
    "__init__": 8,
}
WITHOUT_TORCH = [
    f"polyvera{x}" for x in ("", ".errors", ".adapter.method", ".adapter.spec", ".adapter.layout", ".plan")
]
METHOD_FILE = "adapter/method.py"
# (file, class, field): defaults that name a method.
NAMED_DEFAULTS = {("adapter/spec.py", "AdapterSpec", "method")}
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING = {("torch", "load"), ("pd", "read_pickle"), ("pandas", "read_pickle")}
LONGEST_FUNCTION, LONGEST_FILE = 60, 350

FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted(f for d in ("polyvera", "tests", "benchmarks", "examples") for f in (ROOT / d).rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
each_file_everywhere = pytest.mark.parametrize("file", EVERYWHERE, ids=lambda f: f.relative_to(ROOT).as_posix())


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


# --- imports go one way ----------------------------------------------------------------------------------------------


def room_of(file: str) -> str:
    """The room of a file given by its path in the package."""
    return Path(file).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module, file: str) -> Iterator[str]:
    """Every room that a file imports, at its top or inside a function; `__init__` for the package itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _from(node, file)
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "polyvera":
                yield parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


def _from(node: ast.ImportFrom, file: str) -> list[str]:
    package = ["polyvera", *Path(file).parent.parts]
    start = package[: len(package) + 1 - node.level] if node.level else []
    module = ".".join([*start, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def wrong_imports(tree: ast.Module, file: str) -> list[str]:
    """The rooms that a file imports and may not."""
    room = room_of(file)
    return sorted({to for to in imported_rooms(tree, file) if to != room and ROOMS[to] >= ROOMS[room]})


@each_file
def test_rooms_import_one_way(file):
    inside = file.relative_to(PACKAGE).as_posix()
    assert room_of(inside) in ROOMS, f"{inside} is of no room: give it its place in ROOMS"
    assert wrong_imports(parsed(file), inside) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("data/tables.py", "from polyvera.engine.generation.generator import Generator", ["engine"]),
        ("engine/lifecycle.py", "def f():\n    import polyvera.train.hf_trainer", ["train"]),
        ("adapter/bank.py", "from ..store import registry", ["store"]),
        ("adapter/bank.py", "from .layout import Layout", []),
        ("store/codec.py", "from polyvera import plan, errors", []),
        ("store/codec.py", "from polyvera import inject", ["__init__"]),
        ("plan.py", "from polyvera import cli", ["cli"]),
        ("plan.py", "from .model.shapes import model_shapes", ["model"]),
        ("cli.py", "import polyvera.compare, polyvera.train.hf_trainer, os", []),
    ],
)
def test_a_wrong_import_is_seen(file, source, wrong):
    assert wrong_imports(ast.parse(source), file) == wrong


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_planning_needs_no_torch(module):
    code = (
        "import importlib, sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"importlib.import_module({module!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# --- the table alone names methods -----------------------------------------------------------------------------------


def method_names(tree: ast.Module, file: str) -> list[tuple[int, str]]:
    """(line, name) of every string and keyword that is a method's name, but for the allowed defaults."""
    allowed = {id(value) for value in _allowed(tree, file)}
    strings = [(n.lineno, n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in allowed]
    keywords = [(n.value.lineno, n.arg) for n in ast.walk(tree) if isinstance(n, ast.keyword)]
    return [(line, name) for line, name in strings + keywords if isinstance(name, str) and name in METHODS]


def _allowed(tree: ast.Module, file: str) -> Iterator[ast.expr | None]:
    for owner in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
        for field in (n for n in owner.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)):
            if (file, owner.name, field.target.id) in NAMED_DEFAULTS:
                yield field.value


@each_file
def test_no_code_outside_the_table_names_a_method(file):
    inside = file.relative_to(PACKAGE).as_posix()
    if inside != METHOD_FILE:
        assert method_names(parsed(file), inside) == []


def test_a_named_method_is_seen():
    for name in METHODS:
        for source in (
            f"x == {name!r}",
            f"x = {{{name!r}: 1}}",
            f"match x:\n case {name!r}: pass",
            f"x in ({name!r},)",
        ):
            assert [found for _, found in method_names(ast.parse(source), "train/loop.py")] == [name]
    assert method_names(ast.parse("dict(vera=1)"), "cli.py") == [(1, "vera")]
    assert method_names(ast.parse("'''What vera is.'''"), "cli.py") == []
    default = "class AdapterSpec:\n    method: str = 'vera'\n    other: str = 'vera'"
    assert method_names(ast.parse(default), "adapter/spec.py") == [(3, "vera")]
    assert method_names(ast.parse(default), "train/recipe.py") == [(2, "vera"), (3, "vera")]


# --- size and names --------------------------------------------------------------------------------------------------


def long_functions(tree: ast.Module) -> list[str]:
    """Functions of more than LONGEST_FUNCTION lines."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION]


@each_file_everywhere
def test_functions_and_files_are_short(file):
    assert long_functions(parsed(file)) == []
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_a_long_function_is_seen():
    body = "\n".join(["    x = 1"] * LONGEST_FUNCTION)
    assert long_functions(ast.parse(f"def just_long():\n{body}")) == ["just_long"]
    assert long_functions(ast.parse(f"def short():\n{body[10:]}")) == []


@each_file_everywhere
def test_a_file_is_named_by_a_noun_of_the_field(file):
    names = [part.removesuffix(".py") for part in file.relative_to(ROOT).parts]
    assert VAGUE.isdisjoint(names)


# --- no bytes from outside are run -----------------------------------------------------------------------------------


def unpickling(tree: ast.Module) -> list[int]:
    """Lines that import a pickling library, or reach for torch.load and its kin."""
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.stmt | ast.expr) and _unpickles(n)]


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
