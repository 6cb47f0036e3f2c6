"""A package that is called is its function, imported when it is first called; all else of it stays a package's."""

import inspect
import sys
from importlib import import_module

import pytest

from polyvera.callable_package import CallablePackage, make_callable


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `doubling` whose function stands in doubling/twice.py."""
    folder = tmp_path / "doubling"
    folder.mkdir()
    (folder / "__init__.py").write_text("'''Twice as much.'''\nWIDE = 3\n")
    (folder / "twice.py").write_text("def doubling(x: int, *, times: int = 2) -> int:\n    return times * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    doubling = import_module("doubling")
    make_callable("doubling", "twice")
    yield doubling
    for name in ("doubling", "doubling.twice"):
        sys.modules.pop(name, None)


def test_it_is_called_as_its_function(package):
    assert "doubling.twice" not in sys.modules, "nothing is imported before it is called"
    assert package(4) == 8 and package(4, times=3) == 12
    assert inspect.signature(package) == inspect.signature(sys.modules["doubling.twice"].doubling)


def test_it_stays_a_package(package):
    assert isinstance(package, CallablePackage) and package.WIDE == 3 and package.__doc__ == "Twice as much."
    assert package.function is import_module("doubling.twice").doubling
    with pytest.raises(TypeError, match="more"):
        package(1, times=2, more=3)
