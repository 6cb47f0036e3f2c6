"""The source as the laws of the house read it: its files, parsed, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "polyvera"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted(f for d in ("polyvera", "tests", "benchmarks", "examples") for f in (ROOT / d).rglob("*.py"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
each_file_everywhere = pytest.mark.parametrize("file", EVERYWHERE, ids=lambda f: f.relative_to(ROOT).as_posix())
Edge = tuple[str, str]  # (file that imports, file imported), by their paths in the package


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def sources() -> dict[str, str]:
    """The text of each file of the package, by its path there."""
    return {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in FILES}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function, methods and nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    """The body."""
    return function.body[ast.get_docstring(function) is not None :]


def imports(files: dict[str, str]) -> set[Edge]:
    """Who imports whom: at the top, in a function, for the type checker alone, or by import_module."""
    return {
        (file, home)
        for file, text in files.items()
        for name in imported_names(ast.parse(text), file)
        if (home := home_of(name, files)) not in (None, file)
    }


def imported_names(tree: ast.AST, file: str) -> Iterator[str]:
    """The full dotted names that a file imports, of modules or of what is in them."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(names=names):
                yield from (f"{_module(node, file)}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def _module(node: ast.ImportFrom, file: str) -> str:
    package = ["polyvera", *Path(file).parent.parts]
    start = package[: len(package) + 1 - node.level] if node.level else []
    return ".".join([*start, *([node.module] if node.module else [])])


def home_of(name: str, files: dict[str, str]) -> str | None:
    """The file of the package that a dotted name leads to; None for other packages' names."""
    first, *parts = name.split(".")
    paths = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    found = (at for path in paths for at in (f"{path}.py", f"{path}/__init__.py") if at in files)
    return next(found, "__init__.py") if first == "polyvera" else None
