"""The front door: every name that it shows is there, and nothing heavy is loaded before one is used."""

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import polyvera


@pytest.mark.parametrize("name", polyvera.__all__)
def test_every_name_leads_to_one_thing_whatever_was_imported(name):
    found = getattr(polyvera, name)
    import_module(f"polyvera.{polyvera._HOMES[name]}")
    assert getattr(polyvera, name) is found and (callable(found) or not isinstance(found, ModuleType))


def test_the_names_are_listed():
    assert dir(polyvera) == sorted(polyvera.__all__)


def test_an_unknown_name_is_told_with_those_that_are_there():
    with pytest.raises(AttributeError, match=r"nothing_such.*AdapterSpec"):
        _ = polyvera.nothing_such


def test_the_door_loads_nothing_heavy():
    code = "import sys, polyvera; sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'pydantic')))"
    subprocess.run([sys.executable, "-c", code], check=True)
