"""The adapter_config.json of mlx-lm: kinds of fine-tuning, rank, scale, and which blocks and layers are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyvera.adapter.method import Method
from polyvera.errors import FormatError, SpecError
from polyvera.store.foreign import CONFIG_NAME
from polyvera.store.peft.config import PEFT_METHODS, read_tree, row_of

WEIGHTS_NAME = "adapters.safetensors"
LETTERS: Mapping[str, str] = MappingProxyType({"A": "lora_a", "B": "lora_b", "m": "m"})
ALL_BLOCKS = -1


def _kinds() -> dict[str, Method]:
    """mlx-lm's fine_tune_type and the row of the table that it is: without and with a magnitude."""
    kind = PEFT_METHODS["LORA"]
    rows = [row_of(kind, magnitude) for magnitude in (False, True)]
    return {row.name: row for row in rows}


KINDS: Mapping[str, Method] = MappingProxyType(_kinds())
PLAIN, *_ = KINDS


class LoraParameters(BaseModel):
    """How the layers are adapted. keys: names of layers inside a block; None is a choice by family."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    rank: Annotated[int, Field(ge=1, le=2**14)]
    scale: float
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    keys: tuple[str, ...] | None = None


class MlxConfig(BaseModel):
    """The keys that decide what an adapter computes; all others are of the training run. num_layers: the last so many
    blocks are adapted, all where it is not positive.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    fine_tune_type: str = PLAIN
    num_layers: int = ALL_BLOCKS
    lora_parameters: LoraParameters

    @property
    def row(self) -> Method:
        """The row of the table."""
        return row_named(self.fine_tune_type)


def row_named(fine_tune_type: object) -> Method:
    """The row of the table of a fine_tune_type. Raises SpecError for a kind that is no adapter."""
    if not isinstance(fine_tune_type, str) or fine_tune_type not in KINDS:
        raise SpecError(
            f"{CONFIG_NAME}: fine_tune_type={fine_tune_type!r} cannot be imported; it must be one of: "
            f"{', '.join(KINDS)}"
        )
    return KINDS[fine_tune_type]


def read_mlx_config(folder: Path) -> MlxConfig:
    """The config in a folder. Raises FormatError for what is none, SpecError for a kind that cannot be imported."""
    tree = read_tree(folder / CONFIG_NAME)
    assert row_named(tree.get("fine_tune_type", PLAIN))  # raises before the keys of another kind are missed
    try:
        return MlxConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"{CONFIG_NAME}: {where}: {first['msg']}, got {str(first['input'])[:80]}") from error
