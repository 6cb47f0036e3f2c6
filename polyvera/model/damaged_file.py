"""damaged_file: which file of a model's folder broke what reads it, for the message of a load that failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import safe_open

from polyvera.errors import one_line

POINTER = b"version https://git-lfs"  # of a file that was not downloaded


def damaged_file(source: str, patterns: Collection[str] | None = None) -> str:
    """The first file in a folder that can't be read, and what to do, as a part of a message; '' where all can.

    patterns: keys of CHECKS, None for all.
    """
    for pattern, check in CHECKS.items():
        if patterns is not None and pattern not in patterns:
            continue
        for file in sorted(Path(source).glob(pattern)):
            try:
                check(file)
            except Exception as error:  # whatever is raised, it can't be read
                return f", {file} is damaged ({one_line(error, 200)}): copy or download it again"
    return ""


def _weights(file: Path) -> None:
    _check_pointer(file)
    with safe_open(file, "pt"):
        pass


def _object(file: Path) -> dict[str, Any]:
    _check_pointer(file)
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, where an object is wanted")
    return found


def _index(file: Path) -> None:
    if file.with_name(file.name.removesuffix(".index.json")).is_file():
        return  # all weights are in one file, and nobody reads an index
    places = _object(file).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError("its weight_map does not say which file holds each weight")
    lost = sorted({str(name) for name in places.values() if not (file.parent / str(name)).is_file()})
    if lost:
        raise ValueError(f"it names {lost[0]}, which is not beside it")


def _tokenizer(file: Path) -> None:
    from tokenizers import Tokenizer

    _object(file)
    Tokenizer.from_file(str(file))


def _check_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise ValueError("it is a pointer of Git LFS, whose file was not fetched: git lfs pull")


# By the name of a file; those that others depend on come first.
CHECKS: Mapping[str, Callable[[Path], object]] = MappingProxyType(
    {
        "config.json": _object,
        "*.safetensors": _weights,
        "*.safetensors.index.json": _index,
        "tokenizer.json": _tokenizer,
        "tokenizer_config.json": _object,
        "special_tokens_map.json": _object,
        "added_tokens.json": _object,
        "vocab.json": _object,
        "generation_config.json": _object,
    }
)
OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
