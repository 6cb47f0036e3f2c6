"""SettingsModel: a frozen table of described settings, filled from flags, files, the environment or Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from polyvera.errors import PolyveraError
from polyvera.settings.field import Described, Setting, settings_of
from polyvera.settings.source import Given, Source, from_environment

Word = Callable[[str], str]


def _with_aliases(schema: dict[str, Any], model: type[SettingsModel]) -> None:
    for name, one in model.settings().items():
        for alias in one.about.aliases:
            schema["properties"][alias] = {**schema["properties"][name], "description": f"Another name of {name}."}


class SettingsTable(BaseModel):
    """A frozen table of settings inside another."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class SettingsModel(SettingsTable):
    """Settings that users write. Raises the model's own class of errors, one line for each problem.

    what: how a message calls it. env_prefix: of the environment variables of settings that name no other. refusal: the
    class of its errors.
    """

    model_config = ConfigDict(json_schema_extra=_with_aliases)
    what: ClassVar[str] = ""
    env_prefix: ClassVar[str] = ""
    refusal: ClassVar[type[PolyveraError]] = PolyveraError

    def __init__(self, **given: Any) -> None:
        self._fill(Given(self.settings(), self.what, (Source(given),)))

    @classmethod
    def read(cls, *sources: Source) -> Self:
        """The settings that several places say together: the first of them wins, and the environment is the last.

        Raises as the model does; a message uses the word that was written.
        """
        one = cls.__new__(cls)
        one._fill(cls._given(sources))
        return one

    @classmethod
    def read_some(cls, names: Iterable[str], *sources: Source) -> dict[str, Any]:
        """Some of the settings, as read() reads them; None for one that is required and was not given."""
        given = cls._given(sources)
        asked = tuple(names)
        found = {name: value for name, value in given.nested().items() if name in asked}
        try:
            part = _part(cls, asked)(**found)
        except ValidationError as error:
            given.problems += _refusals(error, given)
        if given.problems:
            raise cls.refusal("\n".join(given.problems))
        return {name: getattr(part, name) for name in asked}

    @classmethod
    @cache
    def settings(cls) -> Mapping[str, Setting]:
        """Every setting by its path."""
        return settings_of(cls, cls.env_prefix)

    def given(self) -> dict[str, Any]:
        """What was given, where the rest is default."""
        return {name: getattr(self, name) for name in self.model_fields if name in self.model_fields_set}

    def replaced(self, **changes: Any) -> Self:
        """The same settings with some changed, checked again. Raises as the model does."""
        names = {alias: path for path, one in self.settings().items() for alias in one.about.aliases}
        changed = {names.get(name, name) for name in changes}
        kept = {name: value for name, value in self.given().items() if name not in changed}
        return type(self)(**kept, **changes)

    def problems(self, word: Word) -> Iterable[str]:
        """What is wrong with settings that are right each by itself. word: a setting as the user wrote it."""
        return ()

    @classmethod
    def _given(cls, sources: Iterable[Source]) -> Given:
        last = from_environment(cls.settings(), cls.env_prefix, os.environ)
        return Given(cls.settings(), cls.what, (*sources, last))

    def _fill(self, given: Given) -> None:
        lines = given.problems
        try:
            self.__pydantic_validator__.validate_python(given.nested(), self_instance=self)
        except ValidationError as error:
            lines += _refusals(error, given)
        if not lines:
            lines = [given.where() + line for line in self.problems(given.word)]
        if lines:
            raise self.refusal("\n".join(lines))


@cache
def _part(model: type[SettingsModel], names: tuple[str, ...]) -> type[SettingsTable]:
    """A model of some of the settings alone, none of which is required."""
    fields: dict[str, Any] = {}
    for name in names:
        info = model.model_fields[name]
        kind = info.annotation | None if info.is_required() else info.annotation  # type: ignore[operator]
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        fields[name] = (Annotated[kind, *info.metadata], default)
    return create_model(f"Some{model.__name__}", __base__=SettingsTable, **fields)


def _refusals(error: ValidationError, given: Given) -> list[str]:
    """One line a setting: the several ways in which one of several types fails are one problem."""
    lines: dict[str, list[str]] = {}
    for one in error.errors(include_url=False):
        start, problem = _problem(one, given)
        lines.setdefault(start or problem, []).append(problem if start else "")
    return [start + " or ".join(dict.fromkeys(problems)) for start, problems in lines.items()]


def refusal_text(error: ErrorDetails) -> str:
    """What pydantic says of a value, as the rest of a sentence that names it."""
    text = error["msg"].replace("Input should", "must", 1)
    return text[:1].lower() + text[1:]


def missing(word: str, about: Described) -> str:
    """The message for a setting that must be given."""
    return f"{word} is missing ({about.text[:1].lower()}{about.text[1:].rstrip('.')})"


def _problem(error: ErrorDetails, given: Given) -> tuple[str, str]:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path[:2]) if ".".join(path[:2]) in given.settings else path[0]
    start = given.where(name) + given.word(name)
    if error["type"] == "missing":
        return "", missing(start, given.settings[name].about)
    return f"{start}={error['input']!r}: ", refusal_text(error)
