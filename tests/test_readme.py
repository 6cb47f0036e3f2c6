"""The README is what the code says: its tables are fresh, its code runs, its links lead somewhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import MODEL, README, ROOT, code_blocks, commands, for_the_tiny_model, write_demo_folder
from typer.testing import CliRunner

from polyvera.cli import app

TEXT = README.read_text(encoding="utf-8")
HERE = {"smollm2": "base", "minilm": "base", "60": "4"}  # a tiny model, and few steps
OF_A_HUB = ("push", "pull")  # tests/cli/test_exchange.py runs them against a server


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
    write_demo_folder(tmp_path)
    return tmp_path


def test_what_is_generated_is_fresh(generator: ModuleType) -> None:
    for page, text in generator.files().items():
        assert page.read_text(encoding="utf-8") == text, "run: python docs/generate.py"


def test_a_stale_table_is_seen(generator: ModuleType) -> None:
    at = TEXT.index("|", TEXT.index("<!-- methods -->"))
    assert generator.generated(TEXT[:at] + "stale " + TEXT[at:]) == TEXT


def test_the_python_code_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in code_blocks("python", README):
        assert MODEL in code
        found: dict[str, object] = {}
        exec(for_the_tiny_model(code, num_steps=40), found)
        assert found["bare"] != found["adapted"]
    assert "cafe/tickets@1" in capsys.readouterr().out


def test_every_verb_is_shown() -> None:
    known = {command.name for command in app.registered_commands}
    assert {words[0] for words in commands(README)} == known


def test_the_commands_run(here: Path) -> None:
    for words in commands(README):
        if words[0] in OF_A_HUB:
            continue
        result = CliRunner().invoke(app, [HERE.get(word, word) for word in words])
        assert result.exit_code == 0, f"{words}: {result.output}"
    assert (here / "exported" / "adapter_config.json").exists() and (here / "merged" / "config.json").exists()


def test_named_files_exist() -> None:
    named = set(re.findall(r"(?<![\w/.])((?:scripts|docs|\.ci|examples|polyvera)/[\w./-]*\w)", TEXT))
    assert named and [name for name in named if not (ROOT / name).exists()] == []
