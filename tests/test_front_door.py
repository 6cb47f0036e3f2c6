"""What `import polyvera` offers: each name is one thing, whatever else was imported before or after."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import polyvera
from polyvera.train.trainer import train as trainer

MODULES = [
    "polyvera." + ".".join(path.relative_to(Path(polyvera.__file__).parent).with_suffix("").parts)
    for path in sorted(Path(polyvera.__file__).parent.rglob("*.py"))
    if path.name != "__init__.py" and "vllm" not in path.parts and path.name not in ("ray_serve.py", "replica_main.py")
]
PACKAGES = ["polyvera.train", "polyvera.evaluate"]
FIRST = ["import {0}", "import {0}.{1}", "from polyvera import {2}", "import polyvera"]


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", polyvera.__all__)
def test_every_name_is_there_and_described(name: str) -> None:
    found = getattr(polyvera, name)
    assert found is getattr(polyvera, name) and name in dir(polyvera)
    assert name == "METHODS" or inspect.getdoc(found)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nope'; it has LLM"):
        polyvera.nope  # noqa: B018


def test_a_name_is_one_thing_after_every_module_was_imported() -> None:
    run(
        "import importlib, polyvera\n"
        "before = {name: getattr(polyvera, name) for name in polyvera.__all__}\n"
        f"for module in {MODULES!r}: importlib.import_module(module)\n"
        "assert all(getattr(polyvera, name) is found for name, found in before.items())\n"
        "assert all(callable(found) for name, found in before.items() if name != 'METHODS')"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_its_function_in_every_order(package: str) -> None:
    name = package.rpartition(".")[2]
    home = sys.modules[package].home  # type: ignore[attr-defined]
    said = (
        f"import polyvera\nfrom polyvera import {name}\nimport {package}.{home}\n"
        f"assert callable({name}) and {name} is polyvera.{name} is {package}\n"
        f"assert {name}.function is {package}.{home}.{name}"
    )
    orders = [first.format(package, home, name) + "\n" + said for first in FIRST]
    run(
        "import os, peft, transformers, transformers.trainer\n"  # what is slow to import, once for all children
        f"for order in {orders!r}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        exec(order, {})\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0, order"
    )


def test_a_packages_call_is_its_functions() -> None:
    assert inspect.signature(polyvera.train) == inspect.signature(trainer)
    with pytest.raises(TypeError, match="recipe"):
        polyvera.train()  # type: ignore[call-arg]


def test_the_front_door_loads_no_torch() -> None:
    run(
        "import sys\nsys.modules['torch'] = None\nimport polyvera, polyvera.train\npolyvera.Recipe(model='m', data='d')"
    )
