"""The pages say what the code does: they link to what there is, their tree is the package's, their code runs."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_pages import DOCS, PAGES, README, ROOT, code_blocks, commands, for_the_tiny_model, write_demo_folder
from test_rooms import ROOMS
from tiny_models import counting_rows
from typer.main import get_command

import polyvera
from polyvera import AdapterSpec, Recipe, Registry, extract, inject, load_base
from polyvera.adapter import method
from polyvera.cli import app
from polyvera.plan import cost

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
# Pages whose Python code needs no server and no cluster.
RUN = ("fleets.md", "python.md", "training.md")


def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def files_of(nav: Any) -> list[str]:
    """The files of a navigation, at any depth."""
    if isinstance(nav, str):
        return [nav]
    return [file for part in (nav.values() if isinstance(nav, dict) else nav) for file in files_of(part)]


def test_the_navigation_names_every_page_once() -> None:
    assert sorted(files_of(config()["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_included_files_exist(page: Path) -> None:
    written = page.read_text(encoding="utf-8")
    assert not re.search(r"^--8 +<|^--8<--(?! \")", written, re.MULTILINE), "an include that a formatter took for code"
    for name, section in re.findall(r'^--8<-- "([^":]+):?(\w*)"', written, re.MULTILINE):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not section or (f"[start:{section}]" in text and f"[end:{section}]" in text)


def test_the_tree_is_the_packages() -> None:
    shown = re.search(
        r"<!-- tree -->(.*?)<!-- end -->", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert shown is not None
    names = re.findall(r"^ *([\w.]+)(?:/|  )", shown[1], re.MULTILINE)
    files = [path.name for path in (ROOT / "polyvera").rglob("*.py") if path.name != "__init__.py"]
    folders = [path.parent.name for path in (ROOT / "polyvera").rglob("__init__.py")]
    assert sorted(names) == sorted([*files, *folders, "page"]), "run: python docs/generate.py"


@each_page
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([\w/]+/[\w]+\.py)`", page.read_text(encoding="utf-8")))
    assert [name for name in named if not any((place / name).exists() for place in (ROOT, ROOT / "polyvera"))] == []


def test_the_rooms_are_in_their_order() -> None:
    lines = re.findall(r"^\| (`.*?`) \|", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", line)) for line in lines] == list(ROOMS[:-1])


def test_the_api_page_names_what_is_public() -> None:
    named = re.findall(r"^::: polyvera\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*named, "PolyveraError"]) == sorted([*polyvera.__all__, "errors"]), (
        "polyvera.errors has PolyveraError"
    )


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {project["version"], citation["version"], changes[0]} == {polyvera.__version__}
    homes = {project["urls"]["Repository"], citation["repository-code"], config()["repo_url"]}
    assert len(homes) == 1


@each_page
def test_commands_have_these_flags(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for verb, *words in commands(page):
        assert verb in known
        flags = {flag for option in known[verb].params for flag in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= flags, f"polyvera {verb}"


@each_page
def test_recipes_are_valid(page: Path) -> None:
    for text in code_blocks("toml", page):
        Recipe(**{"model": "smollm2", "data": "rows.jsonl", **tomllib.loads(text)})


def test_the_worked_example_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = code_blocks("python", DOCS / "adding-a-method.md")
    row = eval(code, vars(method))
    monkeypatch.setattr(method, "METHODS", {**method.METHODS, row.name: row})
    planned = cost(AdapterSpec(row.name), {"one": (6, 5), "two": (6, 7)}, num_base_params=100)
    assert planned.num_params == 5 + 7, "it says: O numbers for a layer of O outputs"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: the demo's files, a store with the adapters they name, a folder of tenants."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_folder(folder)
    base = load_base(str(folder / "base"))
    bank = inject(base.model, AdapterSpec())
    adapter = extract(bank, bank.first, model=base.model)
    for name in ("cafe/tickets", *["acme/support"] * 3):
        Registry(folder / "adapters").put(name, adapter)
    (folder / "tenants").mkdir()
    for name in ("north", "south"):
        (folder / "tenants" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(8)))
    return folder


@pytest.mark.parametrize("name", RUN)
def test_the_python_code_runs(name: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    codes = code_blocks("python", DOCS / name)
    assert codes
    for code in codes:
        exec(for_the_tiny_model(code), {"__name__": name})
