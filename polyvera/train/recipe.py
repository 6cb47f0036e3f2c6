"""Recipe: every choice of one training run, checked before anything is loaded. No torch here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError, SpecError, did_you_mean

FULL_LR = 5e-5
HEAD_LR = 1e-3
EPOCHS = 3.0
CHOICES = tuple(f.name for f in fields(AdapterSpec))

Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _refusals(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a choice: the several ways in which a choice of several types fails are one problem."""
    lines: dict[str, list[str]] = {}
    for one in error.errors(include_url=False):
        name, problem = _problem(dict(one), model)
        lines.setdefault(name, []).append(problem)
    return "\n".join(name + " or ".join(dict.fromkeys(problems)) for name, problems in lines.items())


def _problem(error: dict[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    path = [str(part) for part in error["loc"]]
    known = Budget.model_fields if path[0] == "budget" and len(path) > 1 else model.model_fields
    if error["type"] == "extra_forbidden":
        return repr(".".join(path)), f" is no choice of a recipe{did_you_mean(path[-1], known)}"
    name = ".".join(part for part in path if part in {*model.model_fields, *Budget.model_fields})
    if error["type"] == "missing":
        return name, " is missing"
    return f"{name}={error['input']!r}: ", str(error["msg"])[:1].lower() + str(error["msg"])[1:]


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file, unchecked. Raises RecipeError that names the file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}") from error


class _Choices(BaseModel):
    """A frozen table of choices that has no room for an unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Budget(_Choices):
    """A shrinking rank budget for a row that trains d (AdaLoRA, Zhang 2023, section 3.3).

    rank: the average over the layers at the end. warmup, final: optimizer steps at the full and at the final budget;
    interval: steps from one pruning to the next; None takes 10 %, 30 % and 1 % of the run. beta1, beta2: smoothing of
    sensitivity and of its uncertainty. orthogonal: weight of ‖PᵀP - I‖ + ‖QQᵀ - I‖ where A and B are trained, None
    for 0.1 there.
    """

    rank: Positive
    warmup: Annotated[int, Field(ge=0)] | None = None
    final: Count | None = None
    interval: Count | None = None
    beta1: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    orthogonal: Annotated[float, Field(ge=0.0)] | None = None


class Recipe(_Choices):
    """Every choice of one training run. Raises RecipeError, one line for each problem.

    model: a folder, a hub id or an installed wheel. data, validation, test: a file (JSONL, CSV, Parquet), a folder or
    `hub/id:config@split`; validation may be a fraction of data. max_rows: train on so many of the rows, drawn by
    run_seed. columns: our name = the file's name. chat: prompts and completions go through the chat template. turns:
    which assistant turns of a conversation are learnt. too_long: what becomes of a row whose answer alone is over
    max_length tokens (None: 512, or the model's own limit if less).

    method ... head: AdapterSpec's fields; head=None finds the classification head. full: train every parameter instead,
    the baseline. budget: a shrinking rank budget. seed names the frozen basis, run_seed the order of rows, dropout, the
    validation split and a new head.

    lr: None takes the method's own; head_lr likewise. epochs or max_steps, not both; neither is 3 epochs. warmup: a
    fraction of all steps. eval_every, save_every: in optimizer steps, None for once an epoch. early_stopping: how many
    evaluations without a lower validation loss end the run. output: the run's folder, None to keep nothing on disk.
    init_from: an adapter of the store to start from, or 'mean' for the mean of all that fit.

    fleet: train an adapter for every tenant at once. data (test, and validation where it is no fraction) is then a
    folder with a file for each, or a file with an adapter_column. slots: how many train at a time; batch_tokens: the
    most tokens of one mixed batch, padding counted; workers: how many Ray workers share the tenants. Every other
    choice holds for each tenant as if it were alone, save that save_every counts rounds, in which each tenant makes
    one step.
    """

    model: str
    data: str
    validation: str | Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    test: str | None = None
    max_rows: Count | None = None
    columns: dict[str, str] = {}
    chat: bool = False
    turns: Literal["all", "last"] = "all"
    too_long: Literal["error", "skip"] = "error"
    max_length: Annotated[int, Field(ge=2)] | None = None

    method: str = AdapterSpec().method
    rank: Count | None = None
    targets: str | tuple[str, ...] = "default"
    exclude: Names = ()
    magnitude: bool = False
    alpha: float | None = None
    scaling: str | None = None
    dropout: Fraction = 0.0
    seed: int = 0
    init: str = "kaiming_uniform"
    d_init: float = 0.1
    in_max: Count | None = None
    out_max: Count | None = None
    basis_dtype: str = "float32"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    head: Names | None = None
    full: bool = False
    budget: Budget | None = None

    lr: Positive | None = None
    head_lr: Positive | None = None
    epochs: Positive | None = None
    max_steps: Count | None = None
    batch_size: Count = 8
    accumulate: Count = 1
    warmup: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    clip: Positive = 1.0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    run_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    early_stopping: Count | None = None
    eval_every: Count | None = None
    save_every: Count | None = None
    output: str | None = None

    init_from: str | None = None
    fleet: bool = False
    adapter_column: str | None = None
    slots: Count | None = None
    workers: Count | None = None
    batch_tokens: Count | None = None

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            raise RecipeError(_refusals(error, type(self))) from None
        problems = list(self._problems())
        if problems:
            raise RecipeError("\n".join(problems))

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """The recipe in a TOML file, with some of its choices overridden. Raises RecipeError that names the file.

        Paths in it are relative to the working folder.
        """
        given = {**read_toml(path), **overrides}
        try:
            return cls(**given)
        except RecipeError as error:
            raise RecipeError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None

    def replaced(self, **changes: Any) -> Self:
        """The same recipe with some choices changed, checked anew."""
        return type(self)(**{**self.model_dump(exclude_unset=True), **changes})

    def spec(self, head: tuple[str, ...] = ()) -> AdapterSpec:
        """The adapter that this recipe trains; `head` where the recipe leaves it open."""
        choices = {name: getattr(self, name) for name in CHOICES}
        return AdapterSpec.from_dict({**choices, "head": head if self.head is None else self.head})

    @property
    def learning_rate(self) -> float:
        """The learning rate of the vectors or matrices (of everything in full fine-tuning)."""
        return self.lr or (FULL_LR if self.full else METHODS[self.method].lr)

    @property
    def head_learning_rate(self) -> float:
        """The learning rate of the head."""
        return self.head_lr or (self.learning_rate if self.full else HEAD_LR)

    def _problems(self) -> Iterable[str]:
        yield from self._adapter_problems()
        if self.epochs is not None and self.max_steps is not None:
            yield f"epochs={self.epochs} and max_steps={self.max_steps} both say how long to train: give one of them"
        for name in ("early_stopping", "eval_every"):
            if getattr(self, name) is not None and self.validation is None:
                yield f"{name}={getattr(self, name)} needs validation: a file, or a fraction of data"
        yield from self._fleet_problems()
        if self.save_every is not None and self.output is None:
            yield f"save_every={self.save_every} needs output: the folder to save to"

    def _fleet_problems(self) -> Iterable[str]:
        for name in ("adapter_column", "slots", "batch_tokens", "workers"):
            if getattr(self, name) is not None and not self.fleet:
                yield f"{name}={getattr(self, name)!r} has no effect without fleet=true"
        for name in ("full", "budget"):
            if getattr(self, name) and self.fleet:
                yield f"fleet=true trains slots of one bank, which {name} does not allow: train these one at a time"
        if self.full and self.init_from is not None:
            yield "full=true trains every parameter, so init_from would have no effect: leave it out"

    def _adapter_problems(self) -> Iterable[str]:
        if self.full:
            given = sorted(self.model_fields_set & {*CHOICES, "budget"} - {"seed"})
            if given:
                yield f"full=true trains every parameter, so {', '.join(given)} would have no effect: leave it out"
            return
        try:
            row = self.spec().row
        except SpecError as error:
            yield str(error)
            return
        if self.budget is not None:
            yield from self._budget_problems(self.budget, self.rank or row.rank)

    def _budget_problems(self, budget: Budget, rank: int) -> Iterable[str]:
        trained = self.spec().row.trained
        if "d" not in trained:
            able = ", ".join(name for name, row in METHODS.items() if "d" in row.trained)
            yield f"budget needs a method that trains d, which {self.method} does not; those that do are {able}"
        if budget.rank > rank:
            yield f"budget.rank={budget.rank:g} is more than the rank of {rank} that the run starts with"
        if budget.orthogonal and not {"A", "B"} <= set(trained):
            yield f"budget.orthogonal={budget.orthogonal} has no meaning for {self.method}, whose A and B are frozen"
