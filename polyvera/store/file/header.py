"""The header of an adapter file: two lines of JSON, written and checked here. docs/file-format.md describes them.

The first line decides the layout and is the same text in all like files. The second is the adapter's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import DIGEST, GIVEN, AdapterSpec, BasisKey
from polyvera.errors import FormatError, PolyveraError, did_you_mean
from polyvera.model.task import TASKS
from polyvera.store.file.layer_pattern import Pattern, Width, fold, to_json
from polyvera.store.file.stored_dtype import stored_dtype_named
from polyvera.strict_json import JsonError, loads

FORMAT = 4  # the newest; a file states the oldest that can hold it
OF_EXPERTS = 3  # the oldest that holds stacks of experts
OF_MADE_BASES = 4  # the oldest that names a made basis
MAX_BASIS_NUMBERS = 2**28  # 1 GiB, which is drawn at load
NO_DIGEST, NO_CHECKSUM = "0" * 64, "0" * 32

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Xxh128 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Size = Annotated[int, Field(ge=1, le=2**40)]
Model = TypeVar("Model", bound=BaseModel)
DOOR = ConfigDict(extra="forbid", frozen=True, strict=True)


def _known(task: str) -> str:
    if task and task not in TASKS:
        raise ValueError(f"must be one of: {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    return task


class BasisRecord(BaseModel):
    """The frozen pair: its key and the sha256 of its values, '' where the adapter does not know it."""

    model_config = DOOR

    init: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    rank: Width
    in_max: Width
    out_max: Width
    dtype: str = "float32"
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _bounded(self) -> BasisRecord:
        if self.rank * (self.in_max + self.out_max) > MAX_BASIS_NUMBERS:
            raise ValueError(f"a basis has at most {MAX_BASIS_NUMBERS} numbers")
        return self

    @property
    def key(self) -> BasisKey:
        """The key; only a given pair is named by its values."""
        values = self.model_dump() | {"sha256": (self.sha256 or "") if self.init == GIVEN else ""}
        return BasisKey(**values)


class CommonHeader(BaseModel):
    """The first line: all that like files have in common."""

    model_config = DOOR

    format: int
    dtype: str
    spec: dict[str, Any]
    sites: Annotated[list[Pattern], Field(min_length=1)]
    head: dict[str, list[Size]] = {}
    basis: BasisRecord | None = None

    @property
    def adapter_spec(self) -> AdapterSpec:
        """The spec, every value of its own type. Raises FormatError."""
        if "method" not in self.spec:
            raise FormatError("its spec has no 'method', which every adapter file has")
        try:
            spec = AdapterSpec.from_dict(self.spec)
            _SPEC.validate_json(json.dumps(asdict(spec)), strict=True)
        except ValidationError as error:
            raise FormatError(f"its spec has {_first_problem(error, {})}") from error
        except (PolyveraError, TypeError, AttributeError) as error:
            raise FormatError(f"its spec is invalid: {error}") from error
        return spec


class StoredError(BaseModel):
    """The error that a stored dtype made: the largest difference, and the L2 norm of all over that of the values."""

    model_config = DOOR

    max_abs: FiniteFloat
    relative_l2: FiniteFloat


class OwnHeader(BaseModel):
    """The second line: what is one adapter's alone.

    digest: sha256 of the file with the digits of both sums as zeros. checksum: XXH3-128 of it with its own as zeros.
    """

    model_config = DOOR

    base: str = ""
    created: str = ""
    scores: dict[str, FiniteFloat] = Field(default_factory=dict)
    model: str = ""
    labels: list[str] = Field(default_factory=list)
    lr: FiniteFloat | None = None
    prompt_form: Literal["", "plain", "chat"] = ""
    task: Annotated[str, AfterValidator(_known)] = ""
    threshold: Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)] = 0.5
    origin: dict[str, str] = Field(default_factory=dict)
    error: StoredError | None = None
    digest: Sha256
    checksum: Xxh128

    @property
    def num_keys(self) -> int:
        """The keys of the line, those inside `scores`, `origin` and `error` too."""
        inside = len(self.scores) + len(self.origin) + (len(StoredError.model_fields) if self.error else 0)
        return len(self.model_fields_set) + inside


_SPEC = TypeAdapter(AdapterSpec)


def first_line(adapter: Adapter, dtype: str) -> str:
    """The first line of an adapter's file in that stored dtype. Raises FormatError for what cannot be written."""
    layout = adapter.layout
    common: dict[str, Any] = {
        "format": _oldest(dtype, any(site.num_experts for site in layout.sites), bool(adapter.spec.made_basis)),
        "dtype": dtype,
        "spec": adapter.spec.to_dict(),
    }
    common["sites"] = to_json(fold(layout.sites))
    if layout.head:
        common["head"] = dict(layout.head)
    if layout.basis is not None:
        common["basis"] = _without(asdict(layout.basis) | {"sha256": adapter.basis_sha256 or layout.basis.sha256})
    return _dumped(common)


def second_line(adapter: Adapter, error: Mapping[str, float] | None) -> str:
    """The second line, with zeros for both sums. Raises FormatError for a score that is not a finite number."""
    scores = {str(k): float(v) for k, v in adapter.scores.items()}
    own = _without({"base": adapter.base, "created": adapter.created, "scores": scores, "error": error})
    own |= _without({"model": adapter.model, "labels": list(adapter.labels), "task": adapter.task})
    own |= _without({"lr": adapter.lr, "prompt_form": adapter.prompt_form, "origin": dict(adapter.origin)})
    own |= {} if adapter.threshold == OwnHeader.model_fields["threshold"].default else {"threshold": adapter.threshold}
    line = _dumped(own | {"digest": NO_DIGEST, "checksum": NO_CHECKSUM})
    read_own(line)
    return line


def read_common(line: str) -> CommonHeader:
    """The first line. Raises FormatError, for a newer format with both versions."""
    tree = parsed(line, "the first line of its header")
    version = tree.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FormatError(
            f"it is of format {version}, and this polyvera reads formats up to {FORMAT}: upgrade polyvera to read it"
        )
    if type(version) is not int or version < 1:
        raise FormatError(f"its header states the format {version!r}; polyvera writes formats 1 to {FORMAT}")
    common = _validated(CommonHeader, tree)
    names_made = bool(DIGEST.fullmatch(str(common.spec.get("init"))))
    oldest = _oldest(common.dtype, any(pattern.experts for pattern in common.sites), names_made)
    if version != oldest:
        raise FormatError(
            f"its header states format {version}, but such files in {common.dtype} are of format {oldest}"
        )
    return common


def _oldest(dtype: str, has_experts: bool, names_made: bool) -> int:
    """The oldest format that holds such a file. names_made: whether its basis is a made one."""
    needed = stored_dtype_named(dtype).format, OF_EXPERTS if has_experts else 1
    return max(*needed, OF_MADE_BASES if names_made else 1)


def read_own(line: str) -> OwnHeader:
    """The second line. Raises FormatError."""
    try:
        own = OwnHeader.model_validate_json(line)
    except ValidationError:
        own = None
    # A count of keys that does not fit is a key that comes twice, or a text with a key in it: the slower parser knows.
    if own is None or line.count('":') != own.num_keys:
        own = _validated(OwnHeader, parsed(line, "the second line of its header"))
    return own


def parsed(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinities. Raises FormatError."""
    try:
        tree = loads(text)
    except JsonError as error:
        raise FormatError(f"{what} is not JSON ({error}): it is damaged or no adapter file") from error
    if not isinstance(tree, dict):
        raise FormatError(f"{what} is a JSON {type(tree).__name__}, not an object: it is not an adapter file")
    return tree


def _validated(model: type[Model], tree: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise FormatError(f"its header has {_first_problem(error, model.model_fields)}") from error


def _first_problem(error: ValidationError, known: Mapping[str, object]) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"the unknown key {where!r}{did_you_mean(where, known)}"
    if problem["type"] == "missing":
        return f"no {where!r}, which every adapter file has"
    return f"{where} = {problem['input']!r}: {problem['msg']}"


def _without(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not empty; 0 is a value."""
    return {k: v for k, v in values.items() if v is not None and v != "" and v != {} and v != []}


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"the adapter's header cannot be written as JSON: {error}; a score or an alpha is NaN or infinite"
        ) from error
