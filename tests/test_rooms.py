"""The rooms of the house: each imports those below it, nothing goes in a circle, and nothing is written twice."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from source_tree import Edge, each_file, imports, parsed, sources

# A room imports itself and the rooms of the lines above its own. `polyvera` itself is lazy, and no room imports it.
ROOMS = (
    ("errors", "callable_package", "strict_json"),
    ("adapter", "settings"),
    ("model", "plan"),
    ("store", "data"),
    ("engine", "evaluate", "vllm", "jobs"),
    ("replicas", "train"),
    ("server", "llm"),
    ("compare",),
    ("align", "dimension"),
    ("bases",),
    ("search",),
    ("cli",),
    ("__init__", "__main__"),
)
LINE = {room: line for line, rooms in enumerate(ROOMS) for room in rooms}
# Neither imports the other, wherever they stand.
APART = (
    ("train", "engine"),
    ("train", "server"),
    ("store/file", "store/peft"),
    ("engine/generation", "engine/embedding"),
)
NEVER_IMPORTED = ("vllm",)
WITHOUT_TORCH = [
    f"polyvera{x}" for x in ("", ".errors", ".adapter.method", ".adapter.spec", ".adapter.layout", ".plan")
]
WINDOW = 6  # lines
BRACKETS = "()[]{},"
NO_CODE = re.compile(r"#|from |import ")

FILES = sources()


# --- imports go one way ----------------------------------------------------------------------------------------------


def room_of(file: str) -> str:
    """The room of a file given by its path in the package."""
    return file.split("/")[0].removesuffix(".py")


def is_in(file: str, room: str) -> bool:
    """A room of the first or the second level."""
    return file == f"{room}.py" or file.startswith(f"{room}/")


def wrong_imports(edges: Iterable[Edge]) -> list[Edge]:
    """Those that lead to a room that the importing file may not use."""
    return sorted((file, to) for file, to in edges if _upwards(file, to) or _apart(file, to))


def _upwards(file: str, to: str) -> bool:
    here, there = room_of(file), room_of(to)
    return here != there and (LINE[there] >= LINE[here] or there in NEVER_IMPORTED)


def _apart(file: str, to: str) -> bool:
    return any(is_in(file, x) and is_in(to, y) for pair in APART for x, y in (pair, pair[::-1]))


def test_every_file_is_of_a_room():
    assert {room_of(file) for file in FILES} == set(LINE), "give it its place in ROOMS"


def test_rooms_import_one_way():
    assert wrong_imports(imports(FILES)) == []


@pytest.mark.parametrize(
    ("file", "source", "to"),
    [
        ("data/tables.py", "from polyvera.engine.limits import Limits", "engine/limits.py"),
        ("engine/limits.py", "def f():\n    import polyvera.train.trainer", "train/trainer.py"),
        ("engine/limits.py", "if TYPE_CHECKING:\n    from polyvera.train import trainer", "train/trainer.py"),
        ("train/trainer.py", "from polyvera.engine.limits import Limits", "engine/limits.py"),
        ("adapter/bank.py", "from ..store import registry", "store/registry.py"),
        ("adapter/bank.py", "from importlib import import_module\nimport_module('polyvera.plan')", "plan.py"),
        ("store/registry.py", "from polyvera import inject", "__init__.py"),
        ("store/peft/reader.py", "from ..file.codec import decode", "store/file/codec.py"),
        ("plan.py", "from .model.shapes import model_shapes", "model/shapes.py"),
        ("plan.py", "from polyvera import cli", "cli/__init__.py"),
        ("cli/__init__.py", "import polyvera.vllm.plugin", "vllm/plugin.py"),
    ],
)
def test_a_wrong_import_is_seen(file, source, to):
    files = {file: source, to: "", "__init__.py": ""}
    assert wrong_imports(imports(files)) == [(file, to)]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("adapter/bank.py", "from .layout import Layout"),
        ("store/registry.py", "from polyvera import plan, errors"),
        ("store/registry.py", "from polyvera.store.file.codec import decode"),
        ("train/trainer.py", "import polyvera.evaluate.evaluate, os"),
        ("cli/__init__.py", "import polyvera.compare.report, polyvera.train.trainer, vllm"),
    ],
)
def test_a_right_import_passes(file, source):
    assert wrong_imports(imports({file: source, **dict.fromkeys(FILES, "")} | {file: source})) == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_planning_needs_no_torch(module):
    code = (
        "import importlib, sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"importlib.import_module({module!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# --- no circle, between files or between the rooms of any folder ------------------------------------------------------


def circles(edges: Iterable[Edge]) -> list[list[str]]:
    """What imports itself by way of others: files, and rooms of one folder, each room taken as a whole."""
    graph: dict[str, set[str]] = defaultdict(set)
    for file, to in edges:
        here, there = file.split("/"), to.split("/")
        level = next(i for i, (x, y) in enumerate(zip(here, there)) if x != y) + 1
        graph["/".join(here[:level])].add("/".join(there[:level]))
    return sorted({tuple(sorted(circle)) for start in list(graph) if (circle := _circle(graph, start))})


def _circle(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that start reaches and that reaches it."""
    ahead = _reached(graph, start)
    return {node for node in ahead if start in _reached(graph, node)} if start in ahead else set()


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def test_nothing_goes_in_a_circle():
    assert circles(imports(FILES)) == []


@pytest.mark.parametrize(
    ("chain", "circle"),
    [
        ("a/x.py a/y.py a/x.py", [("a/x.py", "a/y.py")]),
        ("a/x.py a/y.py a/z.py a/x.py", [("a/x.py", "a/y.py", "a/z.py")]),
        ("a/x.py a/in/y.py a/z.py a/x.py", [("a/in", "a/x.py", "a/z.py")]),
        ("a/in/y.py a/x.py, a/z.py a/in/w.py, a/x.py a/z.py", [("a/in", "a/x.py", "a/z.py")]),
        ("a/x.py b/y.py, b/z.py a/w.py", [("a", "b")]),
        ("a/x.py a/y.py a/z.py, a/x.py a/z.py a/in/w.py", []),
        ("a/in/x.py a/y.py b/z.py, a/in/w.py a/in/x.py", []),
    ],
)
def test_a_circle_is_seen(chain, circle):
    assert circles(edge for part in chain.split(", ") for edge in pairwise(part.split())) == circle


@pytest.mark.parametrize(
    "source", ["import polyvera.a.x", "def f():\n    from . import x", "if TYPE_CHECKING:\n    from .x import X"]
)
def test_a_circle_of_late_imports_is_seen(source):
    assert circles(imports({"a/x.py": "from polyvera.a.y import Y", "a/y.py": source})) == [("a/x.py", "a/y.py")]


# --- nothing is written twice ----------------------------------------------------------------------------------------


def windows(text: str) -> Iterator[str]:
    """Every run of WINDOW lines of code; blank lines, comments, imports and bare brackets count for nothing."""
    code = [line for line in map(str.strip, text.splitlines()) if line not in BRACKETS and not NO_CODE.match(line)]
    return ("\n".join(code[i : i + WINDOW]) for i in range(len(code) - WINDOW + 1))


def copies(files: dict[str, str]) -> dict[str, list[str]]:
    """The windows that stand in more than one file, and where."""
    return twice((window, file) for file, text in files.items() for window in windows(text))


def class_names(files: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The classes at the top of each file, private ones left out, with their files."""
    for file, text in files.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, file


def twice(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """What was found in more than one file, and in which."""
    homes: dict[str, set[str]] = defaultdict(set)
    for what, file in found:
        homes[what].add(file)
    return {what: sorted(files) for what, files in homes.items() if len(files) > 1}


def test_no_six_lines_stand_in_two_files():
    assert copies(FILES) == {}


def test_no_class_name_stands_twice():
    assert twice(class_names(FILES)) == {}


def test_copied_lines_are_seen():
    six = [f"x{i} = {i}" for i in range(WINDOW)]
    one, other = "\n".join(six), "import os\n\n# once more\n" + "\n    \n".join(f"    {line}" for line in six) + "\n)\n"
    assert list(copies({"a.py": one, "b.py": other}).values()) == [["a.py", "b.py"]]
    assert copies({"a.py": one, "b.py": other.replace("x3", "y")}) == copies({"a.py": f"{one}\n{one}"}) == {}


def test_a_class_name_that_stands_twice_is_seen():
    files = {"a.py": "class Row: ...\nclass _Own: ...", "b.py": "class Row: ...\nclass _Own: ...\nclass Two: ..."}
    assert twice(class_names(files)) == {"Row": ["a.py", "b.py"]}


# --- an engine is asked through its protocol --------------------------------------------------------------------------


def blind_questions(tree: ast.AST) -> list[int]:
    """Lines that ask an engine whether it has an attribute, or take one of no known type."""
    return [node.lineno for node in ast.walk(tree) if _asks(node) or _untyped(node)]


def _asks(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[asked, *_]):
            return ast.unparse(asked).split(".")[-1].lstrip("_") == "engine"
    return False


def _untyped(node: ast.AST) -> bool:
    match node:
        case (
            ast.arg(arg=name, annotation=ast.Name(id="Any"))
            | ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="Any"))
        ):
            return name.lstrip("_").endswith("engine")
    return False


@each_file
def test_no_engine_is_asked_blindly(file):
    assert blind_questions(parsed(file)) == []


@pytest.mark.parametrize(
    "source",
    [
        "hasattr(engine, 'pin')",
        "getattr(self.engine, 'pin', None)",
        "def f(engine: Any): ...",
        "class A:\n    engine: Any",
    ],
)
def test_a_blind_question_is_seen(source):
    assert len(blind_questions(ast.parse(source))) == 1
    assert blind_questions(ast.parse("def f(engine: Engine, x: Any): return hasattr(x, 'engine')")) == []
