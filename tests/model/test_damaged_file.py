"""The file that breaks a load is named, and nothing is said of whole ones."""

from pathlib import Path

import pytest
from tiny_folder import save_tiny

from polyvera.model.damaged_file import OF_TOKENIZER, POINTER, damaged_file


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("tokenizer.json", b"{", "Expecting property name"),
        ("tokenizer.json", b"[]", "a list, where an object is wanted"),
        ("tokenizer.json", b'{"version": "1.0"}', "Model missing|missing field"),
        ("tokenizer.json", POINTER + b".github.com/spec/v1\n", "git lfs pull"),
        ("model.safetensors", POINTER + b".github.com/spec/v1\n", "git lfs pull"),
        ("model.safetensors", b"", ""),
        ("tokenizer_config.json", b"\xff", "utf-8"),
        ("special_tokens_map.json", b'"x"', "a str, where an object is wanted"),
        ("config.json", b"{", "Expecting property name"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, problem: str) -> None:
    folder = str(save_tiny(tmp_path / "tiny"))
    assert damaged_file(folder) == ""
    path = tmp_path / "tiny" / file
    path.write_bytes(content)
    found = damaged_file(folder)
    assert found.startswith(f", {path} is damaged (") and found.endswith("copy or download it again")
    assert any(words in found for words in problem.split("|"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "a list, where an object is wanted"),
        ("{}", "its weight_map does not say"),
        ('{"weight_map": null}', "its weight_map does not say"),
        ('{"weight_map": {}}', "its weight_map does not say"),
        ('{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}', "part-2.safetensors, which is not"),
        ('{"weight_map": {"a": "part-1.safetensors", "b": "sub/2.safetensors"}}', "sub/2.safetensors, which is not"),
    ],
)
def test_an_index_of_no_use_is_named(tmp_path: Path, content: str, problem: str) -> None:
    folder = str(save_tiny(tmp_path / "tiny"))
    path = tmp_path / "tiny" / "model.safetensors.index.json"
    path.write_text(content)
    assert damaged_file(folder) == "", "nobody reads it where all weights are in one file"
    path.with_name("model.safetensors").rename(path.with_name("part-1.safetensors"))
    found = damaged_file(folder)
    assert found.startswith(f", {path} is damaged (") and problem in found
    assert damaged_file(folder, OF_TOKENIZER) == ""
    path.write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    assert damaged_file(folder) == ""


def test_a_name_on_the_hub_has_no_files_to_look_at() -> None:
    assert damaged_file("owner/name") == ""
