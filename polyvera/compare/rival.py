"""Rivals: methods of Hugging Face PEFT's own code, put into a base that the same loop then trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

from polyvera.adapter.layout import Widths
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError
from polyvera.train.recipe import HEAD_LR, Recipe

if TYPE_CHECKING:
    from polyvera.model.load import Base
    from polyvera.train.trainer import TrainResult

Shapes = Mapping[str, Widths]
FP32, INDEX, LONGEST = 4, 1, 256  # bytes, bytes, numbers


@dataclass(frozen=True)
class Rival:
    """A method of PEFT's. peft_type: its name there. choices: of its config, for layers of these (in, out).

    num_bytes: what its adapter takes in the smallest form that PEFT stores, from those choices, the layers and the
    count of trained numbers: what is drawn from a seed costs nothing.
    """

    peft_type: str
    choices: Callable[[Shapes], dict[str, Any]]
    num_bytes: Callable[[Mapping[str, Any], Shapes, int], int] = lambda choices, shapes, num: FP32 * num


@dataclass(frozen=True)
class RivalBase:
    """A base with a rival's parameters in it, which train beside the head. stored_bytes: without the head."""

    base: Base
    stored_bytes: int


def rival_base(recipe: Recipe, rival: Rival, choices: Mapping[str, Any]) -> RivalBase:
    """A fresh base for a recipe with a rival in it, drawn from the run's seed. Raises RecipeError, DataError."""
    from polyvera.train.preparation import base_for, read_tables
    from polyvera.train.schedule import seed_everything

    table = read_tables(recipe).training
    base = base_for(recipe, table)
    seed_everything(recipe.run_seed)
    return with_rival(base, rival, choices)


def with_head_rate(recipe: Recipe, base: Base) -> Recipe:
    """The recipe whose head learns at the rate that it has beside polyvera's own methods."""
    return recipe.replaced(head_lr=HEAD_LR) if base.head and recipe.head_lr is None else recipe


def num_head_params(result: TrainResult) -> int:
    """The head's numbers in a run; those of full fine-tuning count as its own, unless it trains a part."""
    if result.adapter is not None:
        return result.adapter.layout.num_head_params
    heads = result.base.head if result.base.trained is not None else ()
    return sum(p.numel() for name in heads for p in result.base.model.get_submodule(name).parameters())


def with_rival(base: Base, rival: Rival, choices: Mapping[str, Any]) -> RivalBase:
    """The base, changed in place, with the method on the layers that are polyvera's default.

    choices: more of PEFT's config. Raises RecipeError for what PEFT refuses, or where PEFT isn't installed.
    """
    from polyvera.adapter.targets import find_sites

    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftType
    except ImportError:
        raise RecipeError("rivals are trained by PEFT's own code: pip install peft") from None
    model: Any = base.model
    shapes = find_sites(model, AdapterSpec())
    chosen = rival.choices(shapes) | dict(choices)
    before = {id(p) for p in model.parameters()}
    try:
        make: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(rival.peft_type)]
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType(rival.peft_type)](
            model, make(target_modules=list(shapes), **chosen), "default"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"this PEFT does not make {rival.peft_type} with {chosen}: {error!r}") from error
    model.eval()
    added = {n: p for n, p in model.named_parameters() if id(p) not in before and p.requires_grad}
    heads = {n for n, _ in model.named_parameters() if n.startswith(tuple(f"{head}." for head in base.head))}
    num = sum(p.numel() for p in added.values())
    return RivalBase(replace(base, trained=frozenset(added) | heads), rival.num_bytes(chosen, shapes, num))


def piece_length(shapes: Shapes) -> int:
    """The longest vector, of at most LONGEST numbers, that every width is a multiple of."""
    common = gcd(*(width for pair in shapes.values() for width in pair))
    return max(n for n in range(1, LONGEST + 1) if common % n == 0)


def banked_bytes(choices: Mapping[str, Any], shapes: Shapes, num: int) -> int:
    """VB-LoRA: the bank, and for each piece of a vector k indices of a byte and k - 1 weights."""
    length, k = int(choices["vector_length"]), int(choices["topk"])
    pieces = sum(int(choices["r"]) * (width // length) for pair in shapes.values() for width in pair)
    return FP32 * int(choices["num_vectors"]) * length + pieces * (k * INDEX + (k - 1) * FP32)
