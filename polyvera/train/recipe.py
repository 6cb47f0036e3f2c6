"""Recipe: every choice of one training run, checked before anything is loaded. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Lt
from pydantic import BeforeValidator, Field

from polyvera.adapter.first_step import default_lr
from polyvera.adapter.method import D_INIT, ZEROS, Method
from polyvera.adapter.spec import BASIS_INITS, AdapterSpec
from polyvera.errors import PolyveraError, RecipeError, ReferenceNameError, SpecError
from polyvera.model.task import TASKS
from polyvera.settings.field import DEFAULT_STORE, MODEL, STORE, Count, Described, Fraction, Positive
from polyvera.settings.model import SettingsModel, Word
from polyvera.settings.source import Source, from_toml
from polyvera.store.reference import check_alias, check_name
from polyvera.train.rank_budget import ADAPTER, Budget, Share, budget_problems

FULL_LR = 5e-5
HEAD_LR = 1e-2
EPOCHS = 3.0
SMALLEST = 2.0**-126  # a normal number in fp32
CHOICES = tuple(f.name for f in fields(AdapterSpec))
DATA, TRAINING, FLEET = "Data", "Training", "Fleet"
# Where results go, which a run that is resumed may change.
UNDER = "what the adapter is published under"
WHERE = ("output", "name", "store", "alias", "stored")

Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]


class Recipe(SettingsModel):
    """Every choice of one training run, and where its adapter goes. Raises RecipeError, one line for each problem.

    Paths are relative to the working folder. A fleet (fleet=True) trains an adapter for every tenant at once: data
    (test, and validation where it is no fraction) is then a folder with a file for each, or a file with an
    adapter_column. Every other choice holds for each tenant as if it were alone, but save_every counts rounds, in which
    each tenant makes one step.
    """

    what: ClassVar[str] = "recipe"
    env_prefix: ClassVar[str] = "POLYVERA_TRAIN_"
    refusal: ClassVar[type[PolyveraError]] = RecipeError

    model: Annotated[str, MODEL]
    data: Annotated[
        str,
        Described("Examples: a JSONL, CSV or Parquet file, hub/id:config@split, or a fleet's folder of files.", DATA),
    ]
    validation: Annotated[
        str | Share | None,
        Described("A file, or a fraction of the data, to watch and to stop by.", DATA),
    ] = None
    test: Annotated[str | None, Described("A file to score the adapter on at the end.", DATA)] = None
    max_rows: Annotated[Count | None, Described("Train on this many of the rows, drawn by run_seed.", DATA)] = None
    columns: Annotated[dict[str, str], Described("Our column = the file's column, such as prompt=input.", DATA)] = (
        Field(default_factory=dict)
    )
    task: Annotated[str | None, Described(f"One of {', '.join(TASKS)}; by default by the columns.", DATA)] = None
    chat: Annotated[bool | None, Described("Ask through the chat template; an adapter as it was trained.", DATA)] = None
    turns: Annotated[
        Literal["all", "last"], Described("Which assistant turns of a conversation are trained on.", DATA)
    ] = "all"
    too_long: Annotated[
        Literal["error", "skip"], Described("What to do with a row whose answer alone is over max_length.", DATA)
    ] = "error"
    threshold: Annotated[Share | None, Described("Probability from which a label counts (multi-label).", DATA)] = None
    max_length: Annotated[
        Annotated[int, Ge(2)] | None,
        Described("Tokens a row; by default 512, or the model's own limit if that is less.", DATA),
    ] = None

    method: Annotated[str, Described("A row of the table of methods, which `polyvera plan` shows.", ADAPTER)] = (
        AdapterSpec().method
    )
    rank: Annotated[Count | None, Described("The rank; by default the method's own.", ADAPTER)] = None
    hash_size: Annotated[Count | None, Described("Numbers of which a fixed hash makes all letters.", ADAPTER)] = None
    targets: Annotated[
        str | tuple[str, ...],
        Described(
            "'default', 'all-linear', 'experts', a regular expression for a whole name, or endings of names.",
            ADAPTER,
            ("target_modules",),
        ),
    ] = "default"
    exclude: Annotated[Names, Described("Endings of names of layers to leave out.", ADAPTER)] = ()
    magnitude: Annotated[bool, Described("Add a trained row norm m (DoRA) to any method.", ADAPTER, ("use_dora",))] = (
        False
    )
    alpha: Annotated[float | None, Described("Numerator of the scaling, for methods that have one.", ADAPTER)] = None
    scaling: Annotated[str | None, Described("The scaling rule, such as 'alpha/sqrt(r)' (rsLoRA).", ADAPTER)] = None
    dropout: Annotated[Fraction, Described("Dropout on the input of A.", ADAPTER)] = 0.0
    seed: Annotated[int, Described("Names the frozen basis and the start of the factors.", ADAPTER)] = 0
    basis: Annotated[
        str | None, Described("A made basis of the store: its name, its sha256 or the beginning of that.", ADAPTER)
    ] = None
    init: Annotated[str | None, Described(f"The frozen basis: {', '.join(BASIS_INITS)}.", ADAPTER)] = None
    d_init: Annotated[float, Described("Where the vector d starts.", ADAPTER)] = 0.1
    in_max: Annotated[Count | None, Described("Width of the basis; by default that of the widest layer.", ADAPTER)] = (
        None
    )
    out_max: Annotated[
        Count | None, Described("Height of the basis; by default that of the tallest layer.", ADAPTER)
    ] = None
    basis_dtype: Annotated[str, Described("What the values of the basis are rounded to.", ADAPTER)] = "float32"
    rank_pattern: Annotated[dict[str, int], Described("layer=rank where a layer differs.", ADAPTER)] = Field(
        default_factory=dict
    )
    alpha_pattern: Annotated[dict[str, float], Described("layer=alpha where a layer differs.", ADAPTER)] = Field(
        default_factory=dict
    )
    head: Annotated[
        Names | None,
        Described(
            "Trained whole, by default a classifier's head; or 'labels', 'random'.", ADAPTER, ("modules_to_save",)
        ),
    ] = None
    full: Annotated[bool, Described("Train every parameter instead: the baseline.", ADAPTER)] = False
    budget: Annotated[Budget | None, Described("A shrinking rank budget (AdaLoRA).", ADAPTER)] = None

    lr: Annotated[
        Positive | Literal["auto"] | None,
        Described(
            "Learning rate; by default 'auto': a sweep where there are enough rows, else the method's.", TRAINING
        ),
    ] = None
    head_lr: Annotated[Positive | None, Described("Learning rate of the head; by default 0.01.", TRAINING)] = None
    epochs: Annotated[
        Positive | None, Described("Passes over the data; 3 where max_steps is not given either.", TRAINING)
    ] = None
    max_steps: Annotated[Count | None, Described("Optimizer steps, instead of epochs.", TRAINING)] = None
    batch_size: Annotated[Count, Described("Rows a batch.", TRAINING)] = 8
    accumulate: Annotated[
        Count, Described("Batches an optimizer step.", TRAINING, ("gradient_accumulation_steps",))
    ] = 1
    warmup: Annotated[
        Fraction, Described("Fraction of all steps with a rising learning rate.", TRAINING, ("warmup_ratio",))
    ] = 0.06
    schedule: Annotated[
        Literal["linear", "cosine", "constant"],
        Described("What the learning rate does after the warmup.", TRAINING, ("lr_scheduler_type",)),
    ] = "linear"
    weight_decay: Annotated[Annotated[float, Ge(0.0)], Described("Weight decay of what is trained.", TRAINING)] = 0.0
    clip: Annotated[Positive, Described("Largest norm of the gradient.", TRAINING, ("max_grad_norm",))] = 1.0
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Described("Of the base model.", TRAINING)] = (
        "auto"
    )
    gradient_checkpointing: Annotated[bool, Described("Recompute activations to save memory.", TRAINING)] = False
    group_by_length: Annotated[bool, Described("Batch rows of like length.", TRAINING)] = False
    run_seed: Annotated[
        Annotated[int, Ge(0), Lt(2**32)],
        Described("Order of rows, dropout, the validation split, a new head, sampling.", TRAINING),
    ] = 0
    early_stopping: Annotated[
        Count | None, Described("Stop after this many evaluations without a lower validation loss.", TRAINING)
    ] = None
    eval_every: Annotated[
        Count | None, Described("Optimizer steps from one validation to the next; by default an epoch's.", TRAINING)
    ] = None
    save_every: Annotated[
        Count | None,
        Described(
            "Optimizer steps (in a fleet, rounds) from one checkpoint to the next; by default an epoch's.", TRAINING
        ),
    ] = None
    output: Annotated[str | None, Described("Folder of the run: checkpoints, loss curve, history.", TRAINING)] = None

    fleet: Annotated[bool, Described("Train an adapter for every tenant of the data at once.", FLEET)] = False
    adapter_column: Annotated[
        str | None, Described("The column of a common file that names the tenant; by default 'adapter'.", FLEET)
    ] = None
    slots: Annotated[Count | None, Described("How many tenants train at a time; by default 32.", FLEET)] = None
    workers: Annotated[Count | None, Described("Spread the tenants over this many Ray workers.", FLEET)] = None
    batch_tokens: Annotated[
        Count | None,
        Described("Most tokens of a mixed batch with its padding; by default 768 on a CPU, 8192 on a GPU.", FLEET),
    ] = None

    init_from: Annotated[
        str | None,
        Described("Start from this adapter of the store, or from 'mean', the mean of all that fit.", STORE.group),
    ] = None
    name: Annotated[
        str | None, Described("Publish the adapter under this name; in a fleet, under name/tenant.", STORE.group)
    ] = None
    store: Annotated[str, STORE] = DEFAULT_STORE
    alias: Annotated[str | None, Described("Point this alias at the new version.", STORE.group)] = None
    stored: Annotated[
        Literal["float32", "bfloat16", "int8", "int4", "int3"],
        Described("Precision of the stored numbers.", STORE.group),
    ] = "float32"

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """The recipe in a TOML file; overrides win over it, and it over the environment. Raises RecipeError."""
        return cls.read(*([Source(overrides)] if overrides else []), from_toml(path))

    def spec(self, head: tuple[str, ...] = ()) -> AdapterSpec:
        """The adapter that this recipe trains; `head` where the recipe leaves it open."""
        choices = {name: getattr(self, name) for name in CHOICES}
        return AdapterSpec.from_dict({**choices, "head": head if self.head is None else self.head})

    @property
    def folder(self) -> Path | None:
        """The folder of the run."""
        return None if self.output is None else Path(self.output).expanduser()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the vectors or matrices (of everything in full fine-tuning), before any sweep."""
        if isinstance(self.lr, float):
            return self.lr
        return FULL_LR if self.full else default_lr(self.spec())

    @property
    def leaves_lr_open(self) -> bool:
        """Whether a sweep is to choose the learning rate."""
        return not isinstance(self.lr, float)

    @property
    def head_learning_rate(self) -> float:
        """The learning rate of the head."""
        return self.head_lr or (self.learning_rate if self.full else HEAD_LR)

    def of_the_run(self) -> dict[str, Any]:
        """The choices that a run and its continuation share, as JSON values: all but where its results go."""
        return self.model_dump(mode="json", exclude={*WHERE})

    def problems(self, word: Word) -> Iterable[str]:
        """What does not go together. word: a setting as the user wrote it."""
        return RecipeCheck(self, word).problems()


@dataclass(frozen=True)
class RecipeCheck:
    """What in a recipe does not go together."""

    recipe: Recipe
    word: Word

    def problems(self) -> Iterator[str]:
        """One line each."""
        yield from self._of_adapter()
        yield from self._of_training()
        yield from self._of_fleet()
        yield from self._of_store()

    def _said(self, name: str) -> str:
        """A setting with its value, as the user wrote it."""
        word, value = self.word(name), getattr(self.recipe, name)
        if value is True:
            return word if word.startswith("--") else f"{word}=true"
        return f"{word}={value!r}"

    def _of_training(self) -> Iterator[str]:
        recipe = self.recipe
        if recipe.epochs is not None and recipe.max_steps is not None:
            yield f"{self._said('epochs')} and {self._said('max_steps')} both say how long to train: give one of them"
        for name in ("lr", "head_lr"):
            if isinstance(rate := getattr(recipe, name), float) and rate < SMALLEST:
                yield f"{self._said(name)} changes no 32-bit number to another, so training would have no effect"
        yield from self._needing(("early_stopping", "eval_every"), "validation", "a file, or a fraction of data")
        yield from self._needing(("save_every",), "output", "the folder to save to")

    def _of_store(self) -> Iterator[str]:
        recipe = self.recipe
        yield from self._needing(("alias",), "name", UNDER)
        yield from self._unpublished()
        if recipe.alias is not None and recipe.fleet:
            yield f"{self._said('alias')} is for one adapter, and a fleet publishes many: leave it out"
        if recipe.name is not None and recipe.full:
            yield f"{self._said('full')} makes a whole model and no adapter, so {self.word('name')} has no effect"
        for given, check in ((recipe.name, check_name), (recipe.alias, check_alias)):
            try:
                check("x" if given is None else given)
            except ReferenceNameError as error:
                yield str(error)

    def _unpublished(self) -> Iterator[str]:
        recipe = self.recipe
        is_published = recipe.name is not None or recipe.fleet
        asked = set() if is_published else {"store", "stored"} & recipe.model_fields_set
        if recipe.init_from or recipe.basis or recipe.store == os.environ.get(STORE.env):  # which is set for every verb
            asked.discard("store")
        for name in sorted(asked):
            read = f"; or {self.word('basis')}, which is read from it" if name == "store" else ""
            yield f"{self._said(name)} needs {self.word('name')}: {UNDER}{read}"

    def _of_fleet(self) -> Iterator[str]:
        recipe, fleet = self.recipe, self.word("fleet")
        for name in ("adapter_column", "slots", "batch_tokens", "workers"):
            if getattr(recipe, name) is not None and not recipe.fleet:
                yield f"{self._said(name)} has no effect without {fleet}"
        for name in ("full", "budget"):
            if getattr(recipe, name) and recipe.fleet:
                what = self.word(name)
                yield f"{self._said('fleet')} trains slots of one bank, which {what} does not allow: leave one out"
        if recipe.full and recipe.init_from is not None:
            yield f"{self._said('full')} trains every parameter, so {self.word('init_from')} would have no effect"

    def _of_adapter(self) -> Iterator[str]:
        recipe = self.recipe
        if recipe.full:
            if given := sorted(recipe.model_fields_set & {*CHOICES, "budget", "basis"} - {"seed"}):
                words = ", ".join(map(self.word, given))
                yield f"{self._said('full')} trains every parameter, so {words} would have no effect: leave it out"
            return
        try:
            row = recipe.spec().row
        except SpecError as error:
            yield FIRST_WORD.sub(lambda found: self.word(found[0]), str(error))
            return
        yield from self._of_start(row)
        yield from () if recipe.basis is None else self._of_basis(row)
        for name in ("weight_decay", "budget") if recipe.hash_size is not None else ():
            if getattr(recipe, name):
                yield f"{self._said(name)} would break what {self.word('hash_size')} ties together: leave one out"
        if recipe.budget is not None:
            yield from budget_problems(recipe.budget, row, recipe.rank or row.rank, self.word)

    def _of_basis(self, row: Method) -> Iterator[str]:
        """What a made basis leaves no room for."""
        if row.init is None:
            yield f"{self._said('basis')} is not used by {row.name}, which has no basis to choose: leave it out"
        for name in sorted(self.recipe.model_fields_set & {"init", "in_max", "out_max", "basis_dtype"}):
            yield f"{self._said(name)} has no effect with {self.word('basis')}, whose values are made already"

    def _of_start(self, row: Method) -> Iterator[str]:
        """Where an adapter starts at what no gradient leaves."""
        zeros = [x for x, f in row.factors.items() if f.init == ZEROS or (f.init == D_INIT and not self.recipe.d_init)]
        if len(zeros) > 1:
            yield f"{self._said('d_init')} has no effect: {' and '.join(zeros)} would start at 0 and never move"
        if self.recipe.alpha == 0:
            yield f"{self._said('alpha')} multiplies the adapter by 0, so training would have no effect"

    def _needing(self, names: Iterable[str], needed: str, what: str) -> Iterator[str]:
        for name in names:
            if getattr(self.recipe, name) is not None and getattr(self.recipe, needed) is None:
                yield f"{self._said(name)} needs {self.word(needed)}: {what}"


# The setting that a message of AdapterSpec begins with.
FIRST_WORD = re.compile(rf"^({'|'.join(CHOICES)})\b")
