"""What may be called what: the table of methods alone names them, and a file is named by a noun of the field."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from source_tree import PACKAGE, ROOT, each_file, each_file_everywhere, parsed

from polyvera.adapter.method import METHODS

METHOD_FILE = "adapter/method.py"
# (file, class, field): defaults that name a method.
NAMED_DEFAULTS = {("adapter/spec.py", "AdapterSpec", "method")}
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}


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


@each_file_everywhere
def test_a_file_is_named_by_a_noun_of_the_field(file):
    names = [part.removesuffix(".py") for part in file.relative_to(ROOT).parts]
    assert VAGUE.isdisjoint(names)
