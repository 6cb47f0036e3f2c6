"""A fleet of five small tenants, and the solo runs that it is compared with."""

from pathlib import Path
from typing import Any

from tiny_models import make_model, make_tokenizer

from polyvera.model.load import Base
from polyvera.train.fleet.journal import Outcome
from polyvera.train.fleet.one_process import FleetResult
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import TrainResult, train

SETTINGS: dict[str, Any] = {"model": "tiny", "rank": 4, "batch_size": 2, "max_steps": 12, "targets": "all-linear"}


def fleet(place: Path, watch: Any = lambda fleet: None, base: Base | None = None, **choices: Any) -> FleetResult:
    own = {"registry", "start", "resume", "on_score"} & set(choices)
    given = {name: choices.pop(name) for name in own}
    settings = {**SETTINGS, "data": str(place), "fleet": True, "slots": 3, "batch_tokens": 60, **choices}
    recipe = Recipe(**{name: value for name, value in settings.items() if value is not None})
    return train_fleet(recipe, base=base or Base(make_model(), make_tokenizer()), watch=watch, **given)


def solo(path: Path, base: Base | None = None, **choices: Any) -> TrainResult:
    recipe = Recipe(**{**SETTINGS, "data": str(path), **choices})
    return train(recipe, base=base or Base(make_model(), make_tokenizer()), progress=False)


def apart(outcome: Outcome, alone: TrainResult) -> float:
    """The relative difference of the trained numbers."""
    assert outcome.adapter is not None and alone.adapter is not None
    one, other = outcome.adapter.flat, alone.adapter.flat
    return float((one - other).norm() / other.norm())
