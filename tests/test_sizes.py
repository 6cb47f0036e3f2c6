"""How long is long: every function and every file is short."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterable

from source_tree import FILES, each_file_everywhere, functions, parsed, without_docstring

LONGEST_FUNCTION, LONGEST_FILE = 60, 350
MEDIAN, P90 = 8, 20


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to its end, less the docstring."""
    doc = set(function.body) - set(without_docstring(function))
    return _span(function) - sum(map(_span, doc))


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_functions(tree: ast.Module) -> list[str]:
    """Functions of more than LONGEST_FUNCTION lines, docstrings included."""
    return [f.name for f in functions(tree) if _span(f) > LONGEST_FUNCTION]


def median_and_p90(trees: Iterable[ast.Module]) -> tuple[float, int]:
    sizes = sorted(num_lines(function) for tree in trees for function in functions(tree))
    return statistics.median(sizes), sizes[int(0.9 * (len(sizes) - 1))]


@each_file_everywhere
def test_functions_and_files_are_short(file):
    assert long_functions(parsed(file)) == []
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_most_functions_of_the_package_are_very_short():
    median, p90 = median_and_p90(map(parsed, FILES))
    assert median <= MEDIAN and p90 <= P90


def of_lines(num: int, doc: str = "") -> str:
    return "def f():\n" + doc + "    x = 1\n" * (num - 1)


def test_a_long_function_is_seen():
    assert long_functions(ast.parse(of_lines(LONGEST_FUNCTION + 1))) == ["f"]
    assert long_functions(ast.parse(of_lines(LONGEST_FUNCTION))) == []
    assert long_functions(ast.parse(f"class A:\n    async {of_lines(70).replace('    x', '        x')}")) == ["f"]


def test_sizes_leave_docstrings_out():
    doc = '    """One.\n\n    Two.\n    """\n'
    trees = [ast.parse(of_lines(num, doc)) for num in (3, 5, 7, 30)]
    assert median_and_p90(trees) == (6.0, 7)
    assert median_and_p90(trees[-1:]) == (30, 30)
