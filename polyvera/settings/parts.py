"""Parts: frozen dataclasses of the inner code whose described fields are what users write, in outer units."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from polyvera.errors import PolyveraError
from polyvera.settings.field import Described
from polyvera.settings.model import SettingsModel, refusal_text

T = TypeVar("T")


def model_of(*parts: type) -> Any:
    """A model whose settings are the described fields of dataclasses, under their outer names and in outer units."""
    settings: dict[str, Any] = {}
    for part in parts:
        hints = get_type_hints(part, include_extras=True)
        for field in fields(part):
            about = described(hints[field.name])
            if about is not None:
                assert field.default is not MISSING
                default = field.default // about.scale if about.scale > 1 else field.default
                settings[about.name or field.name] = (hints[field.name], default)
    return create_model("Parts", __base__=SettingsModel, **settings)


def part_of(given: SettingsModel, part: type[T], **others: Any) -> T:
    """The dataclass that a model's settings make. others: its fields that are no settings."""
    assert is_dataclass(part)
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(part, include_extras=True).items():
        about = described(hint)
        if about is not None:
            value = getattr(given, about.name or name)
            values[name] = value * about.scale if about.scale > 1 else value
    return part(**values, **others)


def described(hint: Any) -> Described | None:
    """The description in an annotation, if it has one."""
    return next((one for one in get_args(hint) if isinstance(one, Described)), None)


def check(part: Any, refusal: type[PolyveraError]) -> None:
    """Raises the error for the first field of a dataclass that its annotation does not allow."""
    for name, adapter in _adapters(type(part)).items():  # type: ignore[arg-type]
        value = getattr(part, name)
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise refusal(f"{name}={value!r}: {refusal_text(error.errors(include_url=False)[0])}") from None


@cache
def _adapters(part: Hashable) -> dict[str, TypeAdapter[Any]]:
    config = ConfigDict(allow_inf_nan=False)
    hints = get_type_hints(part, include_extras=True)
    allowed: dict[str, Any] = {name: Annotated[hint, None] for name, hint in hints.items()}
    return {name: TypeAdapter(hint, config=config) for name, hint in allowed.items()}
