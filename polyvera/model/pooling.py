"""Pooling: one vector from a text's hidden states, as the model's folder says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.errors import ServeError

MODULES = "modules.json"
POOLING_CONFIG = "config.json"
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)


# (rows, tokens, width), (rows, tokens) -> (rows, width); the mask is 1 for a row's own tokens, which come first.
MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": _max,
}


MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Pooling:
    """How hidden states become one vector. refusal: why this model's vectors are not computed here, '' where they are.

    mode: 'mean' over a text's tokens, 'cls' for the first token's, 'max'. is_normalized: whether its length is then 1.
    """

    mode: str = MEAN
    is_normalized: bool = True
    refusal: str = ""

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (rows, tokens, width), mask (rows, tokens) -> (rows, width) in fp32."""
        pooled = MODES[self.mode](hidden.float(), mask.float())
        return F.normalize(pooled, dim=-1) if self.is_normalized else pooled

    def __str__(self) -> str:
        return self.refusal or f"{self.mode} of the last hidden states{', normalised' * self.is_normalized}"


def pooling_of(name: str | None) -> Pooling:
    """As stated_pooling() has it; the normalised mean where nothing is stated."""
    return stated_pooling(name) or Pooling()


def stated_pooling(name: str | None) -> Pooling | None:
    """As sentence-transformers' files in the model's folder or hub id say, None where there are none.

    Raises ServeError for files that cannot be understood.
    """
    listed = read_json(name, MODULES)
    if listed is None:
        return None
    try:
        modules = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in listed}
        modes = _modes(read_json(name, f"{modules['Pooling']}/{POOLING_CONFIG}"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ServeError(
            f"{MODULES} of {name} or its pooling is not as sentence-transformers writes it ({error!r}): correct or "
            "remove it"
        ) from None
    other = next((name for name in modules if name not in KNOWN_MODULES), None)
    refusal = ""
    if other is not None:
        refusal = f"its embeddings pass through sentence-transformers' {other}, which is not computed here"
    elif len(modes) != 1 or modes[0] not in MODES:
        refusal = f"its pooling is {' and '.join(modes) or 'none'}; here it is one of {', '.join(MODES)}"
    mode = modes[0] if len(modes) == 1 and modes[0] in MODES else MEAN
    return Pooling(mode, "Normalize" in modules, refusal)


def find_file(name: str | None, file: str) -> Path | None:
    """A file of a folder or hub id, None where there is no such file."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, file) if name else None
    except OSError:
        return None
    return None if path is None else Path(path)


def read_json(name: str | None, file: str) -> Any:
    """A JSON file of a folder or hub id, None where there is no such file. Raises ServeError for what is no JSON."""
    path = find_file(name, file)
    try:
        return None if path is None else json.loads(path.read_text("utf-8").lstrip("\ufeff"))
    except (OSError, ValueError) as error:
        raise ServeError(f"{file} of {name} is not valid JSON: {error}") from None


def _modes(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else list(named)
    return [mode for flag, mode in FLAGS.items() if config.get(flag) is True]
