"""Weights that a checkpoint lacks: part of the trained head where they stand behind the backbone, or refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.targets import HEAD_NAMES, head_of
from polyvera.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED, STD = 0, 0.02
LAYER = re.compile(r"\.\d+\.")
REPORT = "LOAD REPORT"  # the title of transformers' table of weights that are missing, unexpected or of another shape


@contextmanager
def without_report() -> Iterator[None]:
    """Loads without transformers' table on the terminal, for check_config() and untrained_head() answer it."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return REPORT not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def missing_keys(info: Mapping[str, Any]) -> set[str]:
    """The tensors that from_pretrained() made up, from the loading info that it gives: absent, or of another shape."""
    return {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def check_config(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raises SpecError where the configuration is of another model than the files: of other sizes, or fewer layers."""
    for key, stored, own in info["mismatched_keys"]:
        if head_of(model, key) is None:
            raise SpecError(
                f"{key} has the shape {tuple(stored)} in its files, and {tuple(own)} by its config.json: one of them "
                "is another model's"
            )
    known, layers = {_any_layer(key) for key in model.state_dict()}, dict[str, list[str]]()
    for key in sorted(info["unexpected_keys"]):
        layers.setdefault(LAYER.split(key, maxsplit=1)[0] + "".join(LAYER.findall(key)[:1]), []).append(key)
    for layer, keys in layers.items():
        if all(_any_layer(key) in known for key in keys):  # those of one that predicts further tokens are not
            raise SpecError(
                f"its files hold {layer.rstrip('.')}, which its config.json does not have, so that a part of the model "
                "would be left out: correct the number of layers there"
            )


def check_generation(source: str) -> None:
    """Raises SpecError for a generation_config.json that cannot be read, or whose end tokens are no numbers."""
    file = Path(source) / "generation_config.json"
    if file.is_file():
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SpecError(f"{file} is damaged ({error}): copy or download it again, or remove it") from error
        ends = read.get("eos_token_id") if isinstance(read, dict) else ()
        several = ends if isinstance(ends, list) else [ends]
        if any(end is not None and type(end) is not int for end in several):
            raise SpecError(f"{file} has eos_token_id={ends!r}, where a token's number is wanted: correct it there")


def _any_layer(key: str) -> str:
    return LAYER.sub(".*.", key)


def untrained_head(model: PreTrainedModel, keys: Collection[str]) -> tuple[str, ...]:
    """The modules behind the backbone that those keys are of. Raises SpecError for a weight of the backbone itself."""
    heads = {key: head_of(model, key) for key in keys}
    lost = sorted(key for key, head in heads.items() if head is None)
    if lost:
        raise SpecError(
            f"its files lack {lost[0]}{f' and {len(lost) - 1} more weights' if len(lost) > 1 else ''}, without which "
            f"{type(model).__name__} answers at random: load it as what it was saved as"
        )
    return tuple(sorted({head for head in heads.values() if head is not None}))


def draw_again(model: PreTrainedModel, keys: Collection[str]) -> None:
    """Draws those of the missing weights that the fingerprint counts, the same at every load."""
    text: Any = model.config
    std = getattr(text, "initializer_range", None) or STD
    generator = torch.Generator().manual_seed(SEED)
    for key in sorted(keys):
        tensor = model.get_parameter(key) if key in dict(model.named_parameters()) else None
        if tensor is not None and tensor.dim() > 1 and key.split(".")[0] not in HEAD_NAMES:
            drawn = torch.randn(tensor.shape, generator=generator) * std
            tensor.data.copy_(drawn.to(tensor.dtype))
