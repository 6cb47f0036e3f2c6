"""The tree of errors: drawn as it is, and every error of the package hangs on its root."""

import inspect
import re

from polyvera import errors
from polyvera.errors import PolyveraError, did_you_mean

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


def drawn() -> dict[str, int]:
    """Each name of the docstring's tree, and how deep it hangs."""
    found = re.finditer(r"^([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    return {name: len(branch) // 4 for branch, name in (match.groups() for match in found)}


def depth(kind: type[BaseException]) -> int:
    return sum(issubclass(base, PolyveraError) for base in kind.__mro__) - 1


def test_the_tree_is_drawn_as_it_is():
    assert drawn() == {kind.__name__: depth(kind) for kind in CLASSES}


def test_every_error_is_called_one_and_says_what_it_is_for():
    for kind in CLASSES:
        assert issubclass(kind, PolyveraError) and kind.__name__.endswith("Error") and kind.__doc__


def test_every_error_is_made_of_its_message():
    assert [str(kind("why")) for kind in CLASSES] == ["why"] * len(CLASSES)


def test_the_nearest_name_is_asked_for():
    assert did_you_mean("lorra", ["dora", "lora"]) == "; did you mean 'lora'?"
    assert did_you_mean("something else", ["dora", "lora"]) == did_you_mean("x", []) == ""
