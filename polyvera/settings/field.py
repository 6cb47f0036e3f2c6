"""Setting: one described choice, with its names, type, bounds, group and environment variable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0.0)]
Fraction = Annotated[float, Ge(0.0), Lt(1.0)]
TYPES: Mapping[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
BOUNDS: Mapping[type, str] = {Ge: "≥ {0.ge:g}", Gt: "> {0.gt:g}", Le: "≤ {0.le:g}", Lt: "< {0.lt:g}"}


@dataclass(frozen=True, slots=True)
class Described:
    """What a setting means; stands in its annotation.

    text: one sentence. group: its panel of --help and its section of the reference. aliases: further names. env: its
    environment variable, '' for the model's prefix and its name. name, scale: its outer name, and what an outer value
    is multiplied by, where the inner code counts in another unit.
    """

    text: str
    group: str
    aliases: tuple[str, ...] = ()
    env: str = ""
    name: str = ""
    scale: int = 1

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": self.text, "group": self.group}


MODEL = Described("The frozen base: a folder, a hub id, or a wheel such as smollm2.", "Model", env="POLYVERA_MODEL")
STORE = Described("The registry: a folder or any fsspec URL.", "Store", env="POLYVERA_STORE")
DEFAULT_STORE = "adapters"
MIB = 1 << 20


@dataclass(frozen=True)
class Setting:
    """A setting of a model. path: its name, with a dot in a nested table ('budget.rank')."""

    path: str
    info: FieldInfo
    about: Described
    env: str

    @property
    def kinds(self) -> set[Any]:
        """The plain types that its annotation allows."""
        return {*_kinds(self.info.annotation)} - {NoneType}

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it is one of, none where it is free."""
        return tuple(map(str, _words(self.info.annotation)))

    @property
    def takes_many(self) -> bool:
        """Whether it is a list or a table."""
        return not self.kinds.isdisjoint((tuple, dict))

    @property
    def type_text(self) -> str:
        """Its type and its bounds, for the reference."""
        return _type_text(self.info.annotation) + _bounds(self.info.metadata)

    @property
    def default_text(self) -> str:
        """Its default, '' where it has none that could be shown."""
        if self.info.is_required():
            return ""
        value = self.info.get_default(call_default_factory=True)
        return "" if value is None or value is False or value in ((), {}) else str(value)

    def from_text(self, given: str | bool | list[str]) -> Any:
        """The value that a flag or an environment variable says; what it can't be is left for the model to refuse."""
        if dict in self.kinds:
            return dict(_pair(one) for one in _list(given))
        if tuple in self.kinds:
            several = _list(given)
            return several[0] if len(several) == 1 and str in self.kinds else tuple(several)
        return _number(given) if {float, str} <= self.kinds and isinstance(given, str) else given


def settings_of(model: type[BaseModel], env_prefix: str = "", path: str = "") -> dict[str, Setting]:
    """The settings of a model by path, those of nested tables after each other."""
    found: dict[str, Setting] = {}
    for name, info in model.model_fields.items():
        nested = _nested(info.annotation)
        if nested is not None:
            found |= settings_of(nested, env_prefix, f"{path}{name}.")
        about = next((one for one in info.metadata if isinstance(one, Described)), None)
        if about is not None:
            env = about.env or f"{env_prefix}{path.replace('.', '_')}{name}".upper()
            found[path + name] = Setting(path + name, info, about, env)
    return found


def _nested(annotation: Any) -> type[BaseModel] | None:
    several = (annotation, *get_args(annotation))
    return next((one for one in several if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _kinds(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        yield origin
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield str
    elif isinstance(annotation, type):
        yield annotation
    else:
        for one in get_args(annotation):
            yield from _kinds(one)


def _words(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in _words(part))


def _type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(parts[0]) + _bounds(parts[1:])
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in parts)
    if origin is tuple:
        return f"list of {_type_text(parts[0])}"
    if origin is dict:
        return f"table of {_type_text(parts[1])}"
    if parts:
        return " or ".join(_type_text(one) for one in parts if one is not NoneType)
    return TYPES.get(annotation, "table" if _nested(annotation) else "text")


def _bounds(metadata: Any) -> str:
    said = [BOUNDS[type(one)].format(one) for one in metadata if type(one) in BOUNDS]
    return f" {' and '.join(said)}" if said else ""


def _list(given: str | bool | list[str]) -> list[str]:
    """The values of a flag that repeats, or those between the commas of an environment variable."""
    return given if isinstance(given, list) else [one.strip() for one in str(given).split(",")]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not of the form KEY=VALUE")
    return key, value
