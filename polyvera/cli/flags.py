"""The flags of a verb, made of the settings that its parameters are annotated with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from polyvera.settings.field import Setting
from polyvera.settings.model import SettingsModel, missing
from polyvera.settings.source import Source, from_toml
from polyvera.train.recipe import Recipe

TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
RECIPE, CONFIG = "recipe", "config"
MAIN = "model"  # the setting of a whole model that an argument may be
File = Annotated[
    Path | None, typer.Option("--recipe", help="A TOML file of `train`, whose settings this verb takes; flags win.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of these settings; flags win over it.")]


@dataclass(frozen=True)
class Taken:
    """A parameter of a verb that is one setting of a model: its flag, else a file, the environment, the default.

    argument: the word of a positional argument, which takes the place of the flag. is_shown: whether there is a flag.
    """

    name: str
    model: type[SettingsModel] = Recipe
    argument: str = ""
    is_shown: bool = True
    is_required: bool = False


@dataclass(frozen=True)
class Whole:
    """A parameter of a verb that is a whole model, with a flag for each of its settings.

    argument: as in Taken; name: of the setting that it is. without: settings that have no flag.
    """

    model: type[SettingsModel] = Recipe
    argument: str = ""
    name: str = MAIN
    without: tuple[str, ...] = ()


Marker = Taken | Whole


def with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with flags for the settings that its parameters are, and files of settings where it takes any."""
    own = inspect.signature(verb, eval_str=True).parameters.values()
    markers = {p.name: found for p in own if (found := _marker(p)) is not None}
    flags = [flag for p in own for flag in (_flags(markers[p.name]) if p.name in markers else [_own(p)])]
    flags += [_keyword(name, kind) for name, kind in _files(markers).items()]

    @wraps(verb)
    def called(**given: Any) -> None:
        files = {name: given.pop(name) for name in _files(markers)}
        sources = partial(_sources, files=files, given=given)
        taken = {name: _value(marker, sources) for name, marker in markers.items()}
        verb(**{p.name: given[p.name] for p in own if p.name not in markers}, **taken)

    called.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in flags}
    return called


def _marker(parameter: inspect.Parameter) -> Marker | None:
    return next((one for one in get_args(parameter.annotation) if isinstance(one, Taken | Whole)), None)


def _files(markers: Mapping[str, Marker]) -> dict[str, Any]:
    """The options of files of settings: a recipe's, and one of the verb's own where its settings are others."""
    other = any(isinstance(one, Whole) and one.model is not Recipe for one in markers.values())
    return ({RECIPE: File} if markers else {}) | ({CONFIG: ConfigFile} if other else {})


def _value(marker: Marker, sources: Callable[[Marker], list[Source]]) -> Any:
    if isinstance(marker, Whole):
        return marker.model.read(*sources(marker))
    value = marker.model.read_some([marker.name], *sources(marker))[marker.name]
    if value is None and marker.is_required:
        raise marker.model.refusal(missing(_write(marker.name, marker), marker.model.settings()[marker.name].about))
    return value


def _sources(marker: Marker, *, files: Mapping[str, Path | None], given: Mapping[str, Any]) -> list[Source]:
    """Where a marker's settings come from, the first of them first."""
    words = [word for one in _settings(marker).values() for word in (one.path, *one.about.aliases)]
    typed = {word: given.get(_parameter(word)) for word in words}
    flags = {word: value for word, value in typed.items() if value not in (None, [])}
    found = [Source(flags, partial(_write, marker=marker), is_text=True)]
    if files.get(CONFIG) is not None and marker.model is not Recipe:
        found.append(from_toml(str(files[CONFIG])))
    if files.get(RECIPE) is not None:
        found.append(_of_recipe(marker.model, str(files[RECIPE])))
    return found


def _of_recipe(model: type[SettingsModel], path: str) -> Source:
    """What a recipe file says of a model's settings: those that are the same setting, with one description."""
    source = from_toml(path)
    if model is Recipe:
        return source
    Recipe.read_some([], source)
    known = Recipe.settings()
    return source.only(n for n, one in model.settings().items() if n in known and one.about is known[n].about)


def _settings(marker: Marker) -> dict[str, Setting]:
    """The settings that have flags; a nested table has those of its own settings."""
    every = marker.model.settings()
    if isinstance(marker, Taken):
        return {marker.name: every[marker.name]} if marker.is_shown else {}
    shown = {path: one for path, one in every.items() if path.partition(".")[0] not in marker.without}
    return {path: one for path, one in shown.items() if not any(other.startswith(f"{path}.") for other in every)}


def _flags(marker: Marker) -> Iterator[inspect.Parameter]:
    for path, setting in _settings(marker).items():
        if _is_argument(marker, path):
            option = typer.Argument(help=_help(setting), metavar=marker.argument, show_default=False)
            yield _keyword(_parameter(path), Annotated[str | None, option])
            continue
        yield _option(setting, path)
        yield from (_option(setting, alias, hidden=True) for alias in setting.about.aliases)
    if isinstance(marker, Whole):
        yield _keyword("schema", Annotated[bool, _schema_option(marker.model)])


def _option(setting: Setting, word: str, *, hidden: bool = False) -> inspect.Parameter:
    flag = _write(word)
    shown: dict[str, Any] = {"rich_help_panel": setting.about.group, "show_default": False, "hidden": hidden}
    if setting.kinds == {bool}:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=_help(setting), **shown)
        return _keyword(_parameter(word), Annotated[bool | None, option])
    option = typer.Option(flag, help=_help(setting), metavar=_metavar(setting), **shown)
    return _keyword(_parameter(word), Annotated[list[str] | None if setting.takes_many else str | None, option])


def _metavar(setting: Setting) -> str:
    if dict in setting.kinds:
        return "KEY=VALUE"
    words = setting.choices
    kinds = setting.kinds - {str} if words else setting.kinds
    return " | ".join((*words, *(TYPES[kind] for kind in TYPES if kind in kinds))) or "TEXT"


def _help(setting: Setting) -> str:
    """The description, and what else the annotation says."""
    also = [f"also {', '.join(map(_write, setting.about.aliases))}"] if setting.about.aliases else []
    also += ["repeatable"] if setting.takes_many else []
    also += [f"env: {setting.env}"] if setting.about.env else []
    also += [f"default: {setting.default_text}"] if setting.default_text else []
    text = f"{setting.about.text} ({'; '.join(also)})" if also else setting.about.text
    return text.replace("[", "\\[")


def _schema_option(model: type[SettingsModel]) -> Any:
    def show(asked: bool) -> None:
        if asked:
            typer.echo(json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False))
            raise typer.Exit

    return typer.Option("--schema", callback=show, is_eager=True, help="Print the JSON schema of the TOML file.")


def _keyword(name: str, kind: Any) -> inspect.Parameter:
    default = False if get_args(kind)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _own(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _parameter(word: str) -> str:
    return word.replace(".", "_")


def _is_argument(marker: Marker | None, path: str) -> bool:
    return marker is not None and bool(marker.argument) and path == marker.name


def _write(word: str, marker: Marker | None = None) -> str:
    """A setting as it is written on the command line."""
    if marker is not None and _is_argument(marker, word):
        return marker.argument
    return "--" + word.replace(".", "-").replace("_", "-")
