"""polyvera's verbs, called as from a shell in a folder with a tiny base model and the rows of three tenants."""

import json
from pathlib import Path

from tiny_folder import save_tiny
from tiny_models import counting_rows
from typer.testing import CliRunner, Result

from polyvera.cli import app

TENANTS = ("ann", "bob", "cy")


def polyvera(*words: str, fails: bool | int = False) -> Result:
    """fails: whether it does, or with which exit code."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert (result.exit_code == fails) if fails > 1 else (result.exit_code != 0) == fails, result.output
    return result


def save_tenants() -> None:
    """base, train/NAME.jsonl and test/NAME.jsonl, in the current folder."""
    save_tiny(Path("base"))
    for folder, num in (("train", 8), ("test", 4)):
        Path(folder).mkdir()
        for name in TENANTS:
            text = "".join(json.dumps(row) + "\n" for row in counting_rows(num))
            Path(folder, f"{name}.jsonl").write_text(text)
