"""The door to Hugging Face PEFT's folders: what they are called there, and the checked config."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from polyvera.adapter.expression import Expressions
from polyvera.adapter.layout import Shape
from polyvera.adapter.method import METHODS, Method
from polyvera.adapter.targets import output_of
from polyvera.errors import FormatError, SpecError, did_you_mean
from polyvera.model.task import TASKS as TASKS_HERE
from polyvera.model.task import THRESHOLD
from polyvera.store.foreign import CONFIG_BYTES, CONFIG_NAME
from polyvera.store.peft.expert_parameters import is_all_stacks
from polyvera.store.peft.family_targets import FAMILY_TARGETS
from polyvera.store.peft.tasks import TASKS
from polyvera.store.regular_file import read_regular
from polyvera.store.tensor_file import check_start

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
BASIS_KEYS = {"A": "base_model.vera_A", "B": "base_model.vera_B"}
MAX_RANK = 2**14
OWN_KEY = "polyvera"  # what a folder of ours says beyond PEFT's keys, which PEFT skips

Names = list[str]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Width = Annotated[int, Field(ge=1, le=2**24)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Words = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """One of PEFT's methods: the config keys of its choices, and the flags that say each scaling rule.

    masked: rank_pattern maps `site.<key of d>` to the mask of the kept ranks, and d is stored as a column. defaults:
    PEFT's own, for keys that a config leaves out.
    """

    name: str
    rank: str
    dropout: str
    scalings: Mapping[str, Mapping[str, bool]]
    defaults: Mapping[str, int]
    alpha: str | None = None
    masked: bool = False
    extras: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


PEFT_METHODS: Mapping[str, PeftMethod] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            PeftMethod(
                "LORA",
                "r",
                "lora_dropout",
                {"alpha/r": {"use_rslora": False}, "alpha/sqrt(r)": {"use_rslora": True}},
                {"r": 8, "lora_alpha": 8},
                "lora_alpha",
            ),
            PeftMethod(
                "ADALORA",
                "init_r",
                "lora_dropout",
                {"alpha,r": {}},
                {"init_r": 12, "lora_alpha": 8},
                "lora_alpha",
                masked=True,
                extras={"total_step": 1, "tinit": 0, "tfinal": 0},  # PEFT refuses a config without a schedule
            ),
            PeftMethod("VERA", "r", "vera_dropout", {"none": {}}, {"r": 256}),
        )
    }
)

MERGE = "PEFT's merge_and_unload() and save_pretrained() make a base model of both"
Effect = Callable[[Any, nn.Module], bool]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A choice that changes the result and that no row of the table has.

    off: the values that ask for nothing, beside null. reason: why another cannot be imported. has_effect: whether such
    a value does anything to a given model. remedy: what to do instead.
    """

    reason: str
    off: tuple[Any, ...] = ()
    has_effect: Effect | None = None
    remedy: str = MERGE

    def refuses(self, value: Any, model: nn.Module | None) -> bool:
        """Whether such a value would change the result; what depends on an unknown model does not count."""
        if value is None or any(value == off and type(value) is type(off) for off in self.off):
            return False
        return self.has_effect is None or (model is not None and self.has_effect(value, model))


def _is_tied(value: Any, model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False)) and output_of(model) is not None


def _names_other_parameters(value: Any, model: nn.Module) -> bool:
    return not isinstance(value, list) or not is_all_stacks(value, model)


MUTATES = "it changes the base's weights at load"
CONVERTED = "save it with PEFT's path_initial_model_for_weight_conversion"
UNSUPPORTED: Mapping[str, Unsupported] = {
    "bias": Unsupported("PEFT knows no such choice", ("none", "all", "lora_only", "vera_only")),
    "init_lora_weights": Unsupported(MUTATES, (True, False, "gaussian", "eva", "orthogonal"), remedy=CONVERTED),
    "lora_bias": Unsupported("it gives B a bias", (False,)),
    "trainable_token_indices": Unsupported("it trains rows of the embedding", ([], {})),
    "target_parameters": Unsupported(
        "it adapts bare parameters that are neither layers nor fused experts", ([],), _names_other_parameters
    ),
    "alora_invocation_tokens": Unsupported("aLoRA adapts only the tokens after an invocation", ([],)),
    "use_qalora": Unsupported("QALoRA pools the input", (False,)),
    "use_bdlora": Unsupported("BD-LoRA has block-diagonal factors", (False,)),
    "arrow_config": Unsupported("Arrow routes tokens between adapters"),
    "kasa_config": Unsupported("KaSA changes the base model's weights"),
    "velora_config": Unsupported("VeLoRA has a forward of its own"),
    "monteclora_config": Unsupported("MonteCLoRA has a forward of its own"),
    "layer_replication": Unsupported("it repeats layers of the base model", ([],)),
    "megatron_config": Unsupported("it adapts Megatron's parallel layers", ({},)),
    "ensure_weight_tying": Unsupported("it ties adapters of the embedding and the output layer", (False,), _is_tied),
}


def row_of(kind: PeftMethod, use_dora: bool) -> Method:
    """The table row that trains exactly what PEFT stores for this kind. Raises SpecError where there is none."""
    for row in METHODS.values():
        letters = set(row.peft_keys) - {"m"} | ({"m"} if use_dora else set())
        if row.peft_type == kind.name and set(row.trained) == letters:
            return row
    raise SpecError(f"peft_type={kind.name} does not use use_dora={use_dora}")


class AutoMapping(BaseModel):
    """The class of the base, which PEFT records where no task says it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base_model_class: Words | None = None


class OwnKeys(BaseModel):
    """What an adapter knows beyond PEFT's keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    labels: tuple[Words, ...] = ()
    scores: dict[str, float] = {}
    created: Words = ""
    model: Words = ""
    base_model_class: Words = ""
    lr: float | None = None
    prompt_form: Literal["", "plain", "chat"] = ""
    task: Literal["", *TASKS_HERE] = ""  # type: ignore[valid-type]
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = THRESHOLD


class PeftConfig(BaseModel):
    """The keys of adapter_config.json that are used, typed as PEFT writes them; other keys decide nothing.

    Those from basis_init on are Polyvera's own, which PEFT skips: the key and the sha256 of the whole basis, and what
    else an adapter knows.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    peft_type: str
    task_type: str | None = None
    auto_mapping: AutoMapping | None = None
    base_model_name_or_path: Words | None = None
    revision: Words | None = None
    bias: str | None = None
    target_modules: Names | str | None = None
    target_parameters: Names | None = None
    exclude_modules: Names | str | None = None
    modules_to_save: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | str | None = None
    r: Rank | None = None
    init_r: Rank | None = None
    lora_alpha: float | None = None
    lora_dropout: Rate = 0.0
    vera_dropout: Rate = 0.0
    use_rslora: bool | None = False
    use_dora: bool | None = False
    rank_pattern: dict[str, Rank] | dict[str, list[bool]] | None = None
    alpha_pattern: dict[str, float] | None = None
    projection_prng_key: Annotated[int, Field(ge=0, lt=2**64)] = 0
    save_projection: bool = True
    d_initial: float = 0.1
    basis_init: str | None = None
    basis_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    in_max: Width | None = None
    out_max: Width | None = None
    basis_sha256: str | None = None
    polyvera: OwnKeys = OwnKeys()

    @property
    def kind(self) -> PeftMethod:
        """PEFT's method. Raises SpecError for one that is not in the table."""
        if self.peft_type not in PEFT_METHODS:
            near = did_you_mean(self.peft_type, PEFT_METHODS)
            raise SpecError(
                f"peft_type={self.peft_type!r} cannot be imported; it must be one of: {', '.join(PEFT_METHODS)}{near}; "
                "of any other method, PEFT's merge_and_unload() makes a base model"
            )
        return PEFT_METHODS[self.peft_type]

    @property
    def row(self) -> Method:
        """The table row that trains exactly the tensors that such a folder holds. Raises SpecError."""
        return row_of(self.kind, bool(self.use_dora))

    @property
    def scaling(self) -> str:
        """The rule of SCALINGS that this config asks for."""
        rules = self.kind.scalings.items()
        return next(rule for rule, flags in rules if all(bool(getattr(self, k)) == v for k, v in flags.items()))

    @property
    def saved(self) -> tuple[str, ...]:
        """The endings of the names of the modules that are saved whole."""
        task = TASKS.get(self.task_type or "")
        return (*(self.modules_to_save or ()), *(task.heads if task else ()))

    @property
    def base_class(self) -> str:
        """The class of the base, '' where the folder names none."""
        named = None if self.auto_mapping is None else self.auto_mapping.base_model_class
        return self.polyvera.base_model_class or named or ""

    @cached_property
    def expressions(self) -> Expressions:
        """Its expressions, which share their time."""
        return Expressions(FormatError)

    def required(self, key: str) -> Any:
        """A choice, or PEFT's default where the file leaves it out. Raises FormatError for null."""
        value = getattr(self, key)
        if value is None and key not in self.model_fields_set:
            value = self.kind.defaults.get(key)
        if value is None:
            raise FormatError(f"{CONFIG_NAME}: {key} is null, and peft_type={self.peft_type} needs a number")
        return value

    def on(self, model: nn.Module) -> PeftConfig:
        """With the targets that null means for this model. Raises SpecError for what it cannot mean here."""
        if self.target_modules is not None:
            return self
        family = str(getattr(getattr(model, "config", None), "model_type", ""))
        targets = FAMILY_TARGETS[self.kind.name].get(family, () if self.target_parameters else None)
        if targets is None:
            raise SpecError(
                f"{CONFIG_NAME}: target_modules is null, and PEFT has no default for {family or type(model).__name__}"
            )
        return self.model_copy(update={"target_modules": targets if isinstance(targets, str) else list(targets)})


def read_config(path: Path, model: nn.Module | None = None) -> PeftConfig:
    """A PEFT config. Raises FormatError for what is no such config, SpecError for a choice that cannot be imported.

    model: the base, on which some choices have no effect; None leaves those unchecked.
    """
    given = read_tree(path)
    for key, choice in UNSUPPORTED.items():
        if choice.refuses(given.get(key), model):
            what = f"{path.name}: {key}={given[key]!r}"
            raise SpecError(f"{what} cannot be imported: {choice.reason}; {choice.remedy}")
    try:
        config = PeftConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"{path.name}: {where}: {first['msg']}, got {str(first['input'])[:80]}") from error
    assert config.kind and config.row  # both raise for what cannot be imported
    wrong = next(_conflicts(config), "")
    if wrong:
        raise SpecError(f"{path.name}: {wrong}, as PEFT refuses it, too")
    return config


def read_tree(path: Path) -> dict[str, Any]:
    """The object in an adapter_config.json. Raises FormatError where there is none."""
    try:
        text = read_regular(path, CONFIG_BYTES, follows_links=True)
    except FormatError as error:
        raise FormatError(f"{path.name}: {error}; this is not a PEFT config") from None
    check_start(path.name, text)
    try:
        given = json.loads(text.decode().lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise FormatError(f"{path.name} holds a JSON {type(given).__name__}, not an object")
    return given


def _conflicts(config: PeftConfig) -> Iterator[str]:
    """What PEFT's own class refuses of choices that are each right."""
    if config.task_type is not None and config.task_type not in TASKS:
        yield f"task_type={config.task_type!r} must be one of: {', '.join(TASKS)}"
    if isinstance(config.target_modules, str) and config.layers_to_transform is not None:
        yield "layers_to_transform cannot be combined with one expression in target_modules"
    if config.layers_pattern and config.layers_to_transform is None:
        yield "layers_pattern has a meaning only with layers_to_transform"


def stored_shape(kind: PeftMethod, letter: str, shape: Shape) -> Shape:
    """The shape that PEFT gives a factor on disk."""
    return (*shape, 1) if kind.masked and letter == "d" else shape
