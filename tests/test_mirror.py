"""The tests mirror the package: what has logic in polyvera/x/y.py has tests in tests/x/test_y.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from source_tree import PACKAGE, ROOT, each_file, functions, parsed, without_docstring


def has_logic(tree: ast.Module) -> bool:
    """Whether any function does something: constants, re-exports, fields and the signatures of a protocol do not."""
    return any(not all(map(_is_nothing, without_docstring(function))) for function in functions(tree))


def _is_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or ast.unparse(statement) == "..."


def mirror(file: Path) -> Path:
    """Where the tests of a file of the package are, both relative to their folders."""
    return file.with_name(f"test_{file.stem.strip('_')}.py")


def own_tests(file: Path) -> list[str]:
    """The names of its test functions; none where there is no such file."""
    return [f.name for f in functions(parsed(file)) if f.name.startswith("test_")] if file.exists() else []


@each_file
def test_what_has_logic_has_tests_of_its_own(file):
    expected = ROOT / "tests" / mirror(file.relative_to(PACKAGE))
    if has_logic(parsed(file)):
        assert own_tests(expected), f"write {expected.relative_to(ROOT)}"


@pytest.mark.parametrize(
    ("source", "logic"),
    [
        ("from polyvera.a import b\nX = {1: 2}", False),
        ("class A(Protocol):\n    x: int\n    def f(self) -> int:\n        '''What.'''\n    def g(self): ...", False),
        ("class AError(Exception):\n    '''What.'''\n    status = 404", False),
        ("def f():\n    pass", False),
        ("def f(): return 1", True),
        ("class A:\n    @property\n    def x(self):\n        '''What.'''\n        return self.y", True),
        ("if X:\n    async def f():\n        await g()", True),
    ],
)
def test_logic_is_seen(source, logic):
    assert has_logic(ast.parse(source)) == logic


def test_a_missing_mirror_is_seen(tmp_path):
    names = {
        "adapter/bank.py": "adapter/test_bank.py",
        "__init__.py": "test_init.py",
        "cli/__init__.py": "cli/test_init.py",
    }
    assert {file: mirror(Path(file)).as_posix() for file in names} == names
    (tmp_path / "test_empty.py").write_text("def helper(): ...")
    assert own_tests(tmp_path / "test_bank.py") == own_tests(tmp_path / "test_empty.py") == []
    assert "test_a_missing_mirror_is_seen" in own_tests(Path(__file__))
