"""The README is what the code says: its tables are fresh, its code runs, its links lead somewhere."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from tiny_folder import save_tiny
from tiny_models import counting_rows
from typer.testing import CliRunner

from polyvera.adapter import method
from polyvera.adapter.spec import AdapterSpec
from polyvera.cli import app
from polyvera.plan import cost

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODEL = '"smollm2"'


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The polyvera commands that the README shows, in order, as words."""
    lines = [line for block in code_blocks("bash") for line in block.splitlines() if line.startswith("polyvera ")]
    return [shlex.split(line.replace("$'", "'"), comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as scripts/demo leaves it, with a tiny model in place of the wheel's."""
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("base"))
    rows = "".join(json.dumps(row) + "\n" for row in counting_rows(40))
    for path, text in (("runs/demo/orders.jsonl", rows), *examples()):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    return tmp_path


def examples() -> list[tuple[str, str]]:
    """The example files, for the tiny model and a few steps."""
    found = []
    for path in sorted((ROOT / "examples").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        assert MODEL in text
        found.append(
            (f"examples/{path.name}", re.sub(r"max_steps = \d+", "max_steps = 3", text.replace(MODEL, '"base"')))
        )
    return found


def test_the_tables_are_fresh(generator: ModuleType) -> None:
    assert generator.generated(README) == README, "run: python docs/generate.py"
    for name in generator.BLOCKS:
        assert f"<!-- {name} -->" in README


def test_the_reference_is_fresh(generator: ModuleType) -> None:
    for name, write in generator.PAGES.items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == write(), "run: docs/generate.py"


def test_a_stale_table_is_seen(generator: ModuleType) -> None:
    for name in generator.BLOCKS:
        at = README.index("|", README.index(f"<!-- {name} -->"))
        assert generator.generated(README[:at] + "stale " + README[at:]) == README


def test_the_python_code_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in code_blocks("python"):
        assert MODEL in code
        found: dict[str, object] = {}
        exec(re.sub(r"max_steps=\d+", "max_steps=3", code.replace(MODEL, '"base"')), found)
        assert found["bare"] != found["adapted"]
    assert "cafe/tickets@1" in capsys.readouterr().out


def test_every_verb_is_shown() -> None:
    known = {command.name for command in app.registered_commands}
    assert {words[0] for words in commands()} == known


def test_the_commands_run(here: Path) -> None:
    for words in commands():
        result = CliRunner().invoke(app, ["base" if word == "smollm2" else word for word in words])
        assert result.exit_code == 0, f"{words}: {result.output}"
    assert (here / "exported" / "adapter_config.json").exists() and (here / "merged" / "config.json").exists()


def test_the_worked_example_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    (code,) = code_blocks("python", text)
    row = eval(code, vars(method))
    monkeypatch.setattr(method, "METHODS", {**method.METHODS, row.name: row})
    planned = cost(AdapterSpec(row.name), {"one": (6, 5), "two": (6, 7)}, num_base_params=100)
    assert planned.num_params == 5 + 7, "it says: O numbers for a layer of O outputs"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_named_files_exist() -> None:
    named = set(re.findall(r"(?<![\w/.])((?:scripts|docs|\.ci|examples|polyvera)/[\w./-]*\w)", README))
    assert named and [name for name in named if not (ROOT / name).exists()] == []
