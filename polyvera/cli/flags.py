"""The flags of `train`, one for every choice of a recipe: a flag and a key of the TOML file are the same word."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from polyvera.errors import RecipeError
from polyvera.train.recipe import Budget, Recipe, read_toml

DATA, ADAPTER, TRAINING, FLEET, STORE = "Data", "Adapter", "Training", "Fleet", "Store"
PANELS: Mapping[str, Mapping[str, str]] = {
    DATA: {
        "model": "The frozen base: a folder, a hub id, or a wheel such as smollm2.",
        "data": "Examples: a JSONL, CSV or Parquet file, hub/id:config@split, or a fleet's folder of files.",
        "validation": "A file, or a fraction of the data, to watch and stop by.",
        "test": "A file to score the adapter on at the end.",
        "max_rows": "Train on so many of the rows, drawn by run-seed.",
        "columns": "Our column = the file's column, such as prompt=input. Repeatable.",
        "chat": "Put prompts through the model's chat template.",
        "turns": "Which assistant turns of a conversation are learnt.",
        "too_long": "What becomes of a row whose answer alone is over max-length.",
        "max_length": "Tokens a row; by default 512 or the model's own limit.",
    },
    ADAPTER: {
        "method": "A row of the table; `polyvera plan` shows them all.",
        "rank": "The rank; by default the method's own.",
        "targets": "'default', 'all-linear', a regular expression, or an ending. Repeatable.",
        "exclude": "Endings of layers to leave out. Repeatable.",
        "alpha": "Numerator of the scaling, for methods that have one.",
        "scaling": "The scaling rule, such as 'alpha/sqrt(r)' (rsLoRA).",
        "magnitude": "Add a trained row norm m (DoRA) to any method.",
        "seed": "Names the frozen basis and the start of the factors.",
        "init": "How the frozen basis is drawn.",
        "d_init": "Where the vector d starts.",
        "dropout": "Dropout on the input of A.",
        "in_max": "Width of the basis; by default the widest layer.",
        "out_max": "Height of the basis; by default the tallest layer.",
        "basis_dtype": "What the values of the basis are rounded to.",
        "rank_pattern": "layer=rank where a layer differs. Repeatable.",
        "alpha_pattern": "layer=alpha where a layer differs. Repeatable.",
        "head": "Modules trained whole; by default the classification head.",
        "full": "Train every parameter instead: the baseline.",
    },
    TRAINING: {
        "lr": "Learning rate; by default the method's own.",
        "head_lr": "Learning rate of the head.",
        "epochs": "Passes over the data (3 by default).",
        "max_steps": "Optimizer steps, instead of epochs.",
        "batch_size": "Rows a step.",
        "accumulate": "Batches a step.",
        "warmup": "Fraction of the steps with a rising learning rate.",
        "schedule": "What the learning rate does afterwards.",
        "weight_decay": "Decay of what is trained.",
        "clip": "Largest norm of the gradient.",
        "dtype": "Of the base model.",
        "gradient_checkpointing": "Recompute activations to save memory.",
        "group_by_length": "Batch rows of like length.",
        "run_seed": "Order of rows, dropout, the split, a new head.",
        "early_stopping": "Stop after so many evaluations without a lower validation loss.",
        "eval_every": "Steps from one validation to the next.",
        "save_every": "Steps (in a fleet, rounds) from one checkpoint to the next.",
        "output": "Folder of the run: checkpoints, loss curve, history.",
    },
    FLEET: {
        "fleet": "Train an adapter for every tenant of the data at once.",
        "adapter_column": "The column of a common file that names the tenant ('adapter').",
        "slots": "How many tenants train at a time (32).",
        "workers": "Spread the tenants over so many Ray workers.",
        "batch_tokens": "Most tokens of a mixed batch, padding counted (768 on a CPU, 8192 on a GPU).",
    },
    STORE: {
        "init_from": "Start from this adapter of the store, or 'mean' for the mean of all that fit.",
        "name": "Publish the adapter under this name; in a fleet, a prefix: name/tenant.",
        "store": "The registry: a folder or any fsspec URL.",
        "alias": "Point this alias at the new version.",
        "stored": "Precision of the stored numbers.",
    },
}
BUDGET: Mapping[str, str] = {
    "rank": "Average rank that a shrinking budget ends at (AdaLoRA).",
    "warmup": "Steps at the full budget.",
    "final": "Steps at the final budget.",
    "interval": "Steps from one pruning to the next.",
    "beta1": "Smoothing of sensitivity.",
    "beta2": "Smoothing of its uncertainty.",
    "orthogonal": "Weight of the orthogonality term.",
}
TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


class Publish(BaseModel):
    """Where a trained adapter goes: the recipe keys that are the store's and not the run's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    store: str = "adapters"
    alias: str | None = None
    stored: Literal["float32", "bfloat16", "int8"] = "float32"


def with_recipe_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with a flag for every choice of Recipe and Publish, handed to it as one mapping `choices`."""
    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "choices"]
    flags = [_flag(name, _field(name), text, panel) for panel, names in PANELS.items() for name, text in names.items()]
    flags += [_flag(f"budget_{n}", Budget.model_fields[n], text, ADAPTER) for n, text in BUDGET.items()]

    def called(**given: Any) -> None:
        named = {p.name: given.pop(p.name) for p in own}
        verb(**named, choices=_choices(given))

    called.__doc__ = verb.__doc__
    called.__name__ = verb.__name__
    called.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return called


def recipe_of(path: Path | None, choices: Mapping[str, Any]) -> tuple[Recipe, Publish]:
    """The recipe in a file with the flags given on top, and where its adapter goes. Raises RecipeError."""
    written = {} if path is None else read_toml(path)
    merged = {**written, **choices}
    if isinstance(written.get("budget"), dict) and isinstance(choices.get("budget"), dict):
        merged["budget"] = {**written["budget"], **choices["budget"]}
    return recipe_and_publish(merged)


def recipe_and_publish(choices: Mapping[str, Any]) -> tuple[Recipe, Publish]:
    """The two halves of one mapping of choices. Raises RecipeError."""
    own = {k: v for k, v in choices.items() if k in Publish.model_fields}
    recipe = Recipe(**{k: v for k, v in choices.items() if k not in own})
    try:
        return recipe, Publish(**own)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(f"{first['loc'][0]}={first['input']!r}: {first['msg'].lower()}") from None


def _field(name: str) -> FieldInfo:
    return Recipe.model_fields.get(name) or Publish.model_fields[name]


def _flag(name: str, field: FieldInfo, text: str, panel: str) -> inspect.Parameter:
    kinds = _kinds(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kinds == {bool}:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=panel, show_default=False)
        return _parameter(name, bool | None, option)
    shown = (
        " | ".join(map(str, _words(field.annotation))) or " | ".join(TYPES[t] for t in TYPES if t in kinds) or "TEXT"
    )
    shown = "KEY=VALUE" if dict in kinds else shown
    help_text = text if field.default in (None, (), {}) or field.is_required() else f"{text} [{field.default}]"
    option = typer.Option(flag, help=_plain(help_text), rich_help_panel=panel, show_default=False, metavar=shown)
    several = dict in kinds or tuple in kinds
    return _parameter(name, list[str] | None if several else str | None, option)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _kinds(annotation: Any) -> set[type]:
    """The plain types that an annotation allows."""
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        return {origin}
    if isinstance(annotation, type):
        return {annotation}
    return set().union(*(_kinds(a) for a in get_args(annotation))) if origin is not Literal else {str}


def _words(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in _words(part))


def _choices(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given on the command line, as a recipe takes it."""
    chosen = {name: _value(name, value) for name, value in given.items() if value is not None and value != []}
    budget = {n.removeprefix("budget_"): chosen.pop(n) for n in list(chosen) if n.startswith("budget_")}
    return {**chosen, **({"budget": budget} if budget else {})}


def _value(name: str, value: Any) -> Any:
    if name.startswith("budget_"):
        return value
    kinds = _kinds(_field(name).annotation)
    if dict in kinds:
        return dict(_pair(name, one) for one in value)
    if isinstance(value, list):
        return value[0] if len(value) == 1 and str in kinds else tuple(value)
    return _number(value) if float in kinds and str in kinds else value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _pair(name: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--{name.replace('_', '-')} {text!r} is no KEY=VALUE")
    return key, value
