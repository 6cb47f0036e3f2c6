"""tokenizer_of: the tokenizer of a base model, checked for what its files may say wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polyvera.errors import SpecError, one_line
from polyvera.model.damaged_file import OF_TOKENIZER, damaged_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "tokenizer_config.json"
# One of these makes a tokenizer.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json", "*.vocab", "*.bpe", "*spm*")
# What such a file may say of these, and how that is called.
KINDS: Mapping[str, tuple[tuple[type, ...], str]] = MappingProxyType(
    {"model_max_length": ((int, float), "a number"), "chat_template": ((str, dict, list, type(None)), "a text")}
)


def tokenizer_of(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub id. Raises SpecError where there is none, or its files are damaged."""
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise SpecError(f"{source} has no tokenizer, such as tokenizer.json: copy it from where the model came from")
    try:
        found: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # files come from outside and can break what reads them in any way
        if not folder.is_dir() or "trust_remote_code" in str(error):
            raise
        whence = f" from {folder / CONFIG} and the files beside it: {one_line(error, 300)}"
        raise SpecError(f"its tokenizer is not read{damaged_file(source, OF_TOKENIZER) or whence}") from error
    for name, (kinds, wanted) in KINDS.items():
        value = getattr(found, name, None)
        if not isinstance(value, kinds):
            raise SpecError(f"{folder / CONFIG} has {name}={value!r}, where {wanted} is wanted: correct it there")
    return found  # type: ignore[no-any-return]
