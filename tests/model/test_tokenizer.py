"""A tokenizer is read whole, or refused by the file that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import save_tiny

from polyvera.errors import SpecError
from polyvera.model.load import load_base
from polyvera.model.tokenizer import CONFIG, tokenizer_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_whole_one_is_read(folder: Path) -> None:
    assert tokenizer_of(str(folder)).eos_token_id == load_base(str(folder)).tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("entry", "value"),
    [("model_max_length", "long"), ("tokenizer_class", 5), ("eos_token", 7), ("eos_token", {"a": 1})],
)
def test_a_wrong_entry_is_named_by_its_file(folder: Path, entry: str, value: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(SpecError, match=rf"{path}"):
        tokenizer_of(str(folder))


def test_a_folder_without_one_says_so(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SpecError, match=r"has no tokenizer, such as tokenizer\.json"):
        tokenizer_of(str(folder))
