"""The door to Hugging Face PEFT's folders: what they are called there, the checked config, and what it adapts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from polyvera.adapter.base_layer import widths
from polyvera.adapter.expression import Expressions
from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layout import Shape
from polyvera.adapter.method import METHODS, Method
from polyvera.adapter.spec import DTYPES, AdapterSpec
from polyvera.adapter.targets import find_sites, head_of, linear_layers
from polyvera.errors import FormatError, LayoutError, SpecError, did_you_mean
from polyvera.store.regular_file import read_regular

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
BASIS_KEYS = {"A": "base_model.vera_A", "B": "base_model.vera_B"}
CONFIG_BYTES = 16 * 2**20
MAX_RANK = 2**14
ALL_LINEAR = "all-linear"

Names = list[str]
Sites = dict[str, tuple[int, int]]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Width = Annotated[int, Field(ge=1, le=2**24)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """One of PEFT's methods: the config keys of its choices, and the flags that say each scaling rule.

    masked: rank_pattern maps `site.<key of d>` to the mask of the kept ranks, and d is stored as a column.
    """

    name: str
    rank: str
    dropout: str
    scalings: Mapping[str, Mapping[str, bool]]
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
                "lora_alpha",
            ),
            PeftMethod(
                "ADALORA",
                "init_r",
                "lora_dropout",
                {"alpha,r": {}},
                "lora_alpha",
                masked=True,
                extras={"total_step": 1, "tinit": 0, "tfinal": 0},  # PEFT refuses a config without a schedule
            ),
            PeftMethod("VERA", "r", "vera_dropout", {"none": {}}),
        )
    }
)

# The heads that PEFT saves for a task, named in modules_to_save or not.
TASK_HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# Choices that change the result and that no row of the table has; each is accepted only as the value given, or unset.
MUTATES = "it changes the base's weights at load; save it with PEFT's path_initial_model_for_weight_conversion"
UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "bias": (("none",), "it trains biases of the base model"),
    "init_lora_weights": ((True, False, "gaussian", "eva", "orthogonal"), MUTATES),
    "lora_bias": ((False,), "it gives B a bias"),
    "trainable_token_indices": ((), "it trains rows of the embedding"),
    "target_parameters": (([],), "it adapts bare parameters, not layers"),
    "alora_invocation_tokens": ((), "aLoRA adapts only the tokens after an invocation"),
    "use_qalora": ((False,), "QALoRA pools the input"),
    "use_bdlora": ((False,), "BD-LoRA has block-diagonal factors"),
    "arrow_config": ((), "Arrow routes tokens between adapters"),
    "kasa_config": ((), "KaSA changes the base model's weights"),
    "velora_config": ((), "VeLoRA has a forward of its own"),
    "monteclora_config": ((), "MonteCLoRA has a forward of its own"),
    "layer_replication": (([],), "it repeats layers of the base model"),
    "megatron_config": (({},), "it adapts Megatron's parallel layers"),
    "ensure_weight_tying": ((False,), "it ties adapters of the embedding and the output layer"),
}


def row_of(kind: PeftMethod, use_dora: bool) -> Method:
    """The table row that trains exactly what PEFT stores for this kind. Raises SpecError where there is none."""
    for row in METHODS.values():
        letters = set(row.peft_keys) - {"m"} | ({"m"} if use_dora else set())
        if row.peft_type == kind.name and set(row.trained) == letters:
            return row
    raise SpecError(f"peft_type={kind.name} does not use use_dora={use_dora}")


class PeftConfig(BaseModel):
    """The keys of adapter_config.json that are used, typed as PEFT writes them; other keys decide nothing.

    The last five are Polyvera's own, which PEFT skips: the key and the sha256 of the whole basis.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    target_modules: Names | str
    exclude_modules: Names | str | None = None
    modules_to_save: Names | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | str | None = None
    r: Rank | None = None
    init_r: Rank | None = None
    lora_alpha: float | None = None
    lora_dropout: Rate = 0.0
    vera_dropout: Rate = 0.0
    use_rslora: bool = False
    use_dora: bool = False
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

    @property
    def kind(self) -> PeftMethod:
        """PEFT's method. Raises SpecError for one that is not in the table."""
        if self.peft_type not in PEFT_METHODS:
            near = did_you_mean(self.peft_type, PEFT_METHODS)
            raise SpecError(
                f"peft_type={self.peft_type!r} cannot be imported; it must be one of: {', '.join(PEFT_METHODS)}{near}"
            )
        return PEFT_METHODS[self.peft_type]

    @property
    def row(self) -> Method:
        """The table row that trains exactly the tensors that such a folder holds. Raises SpecError."""
        return row_of(self.kind, self.use_dora)

    @property
    def scaling(self) -> str:
        """The rule of SCALINGS that this config asks for."""
        rules = self.kind.scalings.items()
        return next(rule for rule, flags in rules if all(getattr(self, k) == v for k, v in flags.items()))

    @property
    def saved(self) -> tuple[str, ...]:
        """The endings of the names of the modules that are saved whole."""
        return (*(self.modules_to_save or ()), *TASK_HEADS.get(self.task_type or "", ()))

    @cached_property
    def expressions(self) -> Expressions:
        """Its expressions, which share their time."""
        return Expressions(FormatError)

    def required(self, key: str) -> Any:
        """A choice that this kind can't do without. Raises FormatError where it is not there."""
        if getattr(self, key) is None:
            raise FormatError(f"{CONFIG_NAME} of peft_type={self.peft_type} has no {key!r}")
        return getattr(self, key)


def read_config(path: Path) -> PeftConfig:
    """A PEFT config. Raises FormatError for what is no such config, SpecError for a choice that cannot be imported."""
    try:
        text = read_regular(path, CONFIG_BYTES, follows_links=True)
    except FormatError as error:
        raise FormatError(f"{path.name}: {error}; this is not a PEFT config") from None
    try:
        given = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise FormatError(f"{path.name} holds a JSON {type(given).__name__}, not an object")
    for key, (accepted, reason) in UNSUPPORTED.items():
        value = given.get(key)
        if value is not None and not any(value == a and type(value) is type(a) for a in accepted):
            raise SpecError(f"{path.name}: {key}={value!r} cannot be imported: {reason}")
    try:
        config = PeftConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"{path.name}: {where}: {first['msg']}, got {str(first['input'])[:80]}") from error
    assert config.kind and config.row  # both raise for what cannot be imported
    return config


def sites_of(config: PeftConfig, model: nn.Module) -> Sites:
    """(in, out) of every layer that PEFT adapts under this config, in the model's order. Raises LayoutError."""
    layers = linear_layers(model)
    chosen = _all_linear(model) if _is_all_linear(config) else {n for n in layers if _is_target(config, n)}
    sites = {n: widths(layers[n]) for n in layers if n in chosen and not _is_excluded(config, n)}
    if not sites:
        last = sorted({n.rpartition(".")[2] for n in layers})
        raise LayoutError(
            f"target_modules={config.target_modules!r} matches no linear layer of {type(model).__name__}, "
            f"which has {', '.join(last)}"
        )
    return sites


def heads_of(config: PeftConfig, model: nn.Module) -> dict[str, Shape]:
    """The shape of every tensor of the modules saved whole, by its name. Raises LayoutError for a nested module."""
    names = [n for n, _ in model.named_modules(remove_duplicate=False) if n and n.endswith(config.saved)]
    for name in names:
        if "." in name and head_of(model, f"{name}.") != name:
            raise LayoutError(
                f"modules_to_save={config.modules_to_save!r} saves {name!r} whole; only a module directly under "
                f"{type(model).__name__} can be a head"
            )
    return {key: tuple(t.shape) for key, t in head_tensors(model, names).items()}


def stored_shape(kind: PeftMethod, letter: str, shape: Shape) -> Shape:
    """The shape that PEFT gives a factor on disk."""
    return (*shape, 1) if kind.masked and letter == "d" else shape


def widest(sites: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(in, out) of the widest layers, which is the size of PEFT's own basis."""
    return max(i for i, _ in sites.values()), max(o for _, o in sites.values())


def compute_dtype(layer: nn.Module) -> str:
    """What PEFT casts an adapter to on this layer: its compute_dtype, or its weight's dtype where that is a float."""
    dtype = getattr(layer, "compute_dtype", None) or layer.weight.dtype
    name = str(dtype).removeprefix("torch.")
    return name if name in DTYPES else DTYPES[0]


def of_pattern(config: PeftConfig, key: str, site: str, default: Any) -> Any:
    """The value of the first pattern that ends the layer's name, as PEFT matches rank_pattern and alpha_pattern."""
    for pattern, value in (getattr(config, key) or {}).items():
        if config.expressions.match(key, rf"(.*\.)?({pattern})$", site):
            return value
    return default


def _is_all_linear(config: PeftConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR


def _all_linear(model: nn.Module) -> set[str]:
    return set(find_sites(model, AdapterSpec(targets=ALL_LINEAR)))


def _is_excluded(config: PeftConfig, name: str) -> bool:
    if any(config.expressions.match("modules_to_save", rf"(^|.*\.){m}($|\..*)", name) for m in config.saved):
        return True
    return config.exclude_modules is not None and _is_named(config, "exclude_modules", name)


def _is_target(config: PeftConfig, name: str) -> bool:
    if not _is_named(config, "target_modules", name):
        return False
    wanted = config.layers_to_transform
    if isinstance(config.target_modules, str) or wanted is None or wanted == []:
        return True
    return _layer_index(config, name) in ([wanted] if isinstance(wanted, int) else wanted)


def _is_named(config: PeftConfig, key: str, name: str) -> bool:
    names: Names | str = getattr(config, key)
    if isinstance(names, str):
        return config.expressions.fullmatch(key, names, name) is not None
    return name in names or name.endswith(tuple(f".{n}" for n in names))


def _layer_index(config: PeftConfig, name: str) -> int | None:
    patterns = config.layers_pattern
    several = [patterns] if isinstance(patterns, str) else patterns
    for expression in [rf"(?:^|.*?\.){p}\.(\d+)\." for p in several] if several else [r".*?\.[^.]*\.(\d+)\."]:
        found = config.expressions.match("layers_pattern", expression, name)
        if found:
            return int(found.groups()[-1])
    return None
