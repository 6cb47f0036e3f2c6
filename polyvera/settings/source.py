"""Source: settings from flags, a file, the environment or Python. Given: what several of these say together."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvera.errors import RecipeError, did_you_mean
from polyvera.settings.field import Setting


@dataclass(frozen=True)
class Source:
    """Settings from one place. values: by name, tables nested. write: how this place writes a path. where: 'FILE: '.

    is_text: whether the values are texts, to be read as the types of their settings.
    """

    values: Mapping[str, Any]
    write: Callable[[str], str] = str
    where: str = ""
    is_text: bool = False

    def only(self, names: Iterable[str]) -> Source:
        """The same place, as if it had said nothing of other settings."""
        kept = {*names}
        return Source({n: v for n, v in self.values.items() if n in kept}, self.write, self.where, self.is_text)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file, unchecked. Raises RecipeError that names the file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8").lstrip("\ufeff"))
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # whatever the parser raises
        raise RecipeError(f"{path} is not valid TOML: {error}") from error


def from_toml(path: str | Path) -> Source:
    """A TOML file. Raises RecipeError that names the file."""
    return Source(read_toml(path), where=f"{path}: ")


def from_environment(settings: Mapping[str, Setting], prefix: str, environment: Mapping[str, str]) -> Source:
    """The environment variables of these settings; one that begins like them and is none of them stays in, unknown."""
    paths = {one.env: path for path, one in settings.items()}
    known = {paths[name]: text for name, text in environment.items() if name in paths and text}
    unknown = {name: text for name, text in environment.items() if _is_like(name, prefix) and name not in paths}
    return Source(known | unknown, write=lambda path: settings[path].env if path in settings else path, is_text=True)


def _is_like(name: str, prefix: str) -> bool:
    return bool(prefix) and name.startswith(prefix)


@dataclass
class Given:
    """What several places say together, the first of them first. values: by path; problems: what can't be taken."""

    settings: Mapping[str, Setting]
    what: str
    sources: tuple[Source, ...]
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _words: dict[str, str] = field(default_factory=dict)
    _where: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {name: path for path, one in self.settings.items() for name in (path, *one.about.aliases)}
        self._tables = {path.partition(".")[0] for path in self.settings if "." in path}
        for source in self.sources:
            self._add(source)

    def word(self, path: str) -> str:
        """A setting as the user wrote it, or would write it at the first of the places."""
        return self._words.get(path) or self.sources[0].write(path)

    def where(self, path: str = "") -> str:
        """The place where a setting was given, as the beginning of a message."""
        return self._where.get(path, self.sources[0].where)

    def nested(self) -> dict[str, Any]:
        """The values, those of a nested table as one mapping."""
        found: dict[str, Any] = {}
        for path, value in self.values.items():
            table, dot, name = path.partition(".")
            if dot:
                found.setdefault(table, {})[name] = value
            else:
                found[path] = value
        return found

    def _add(self, source: Source) -> None:
        seen: dict[str, str] = {}
        for word, value in self._flat(source.values):
            path = self._names.get(word)
            if path is None:
                near = did_you_mean(word, map(source.write, self._names))
                self.problems.append(f"{source.where}unknown {self.what} key {word!r}{near}")
            elif path in seen:
                both = f"{source.write(seen[path])} and {source.write(word)}"
                self.problems.append(f"{source.where}{both} are two names of one setting: give one of them")
            else:
                seen[path] = word
                self._take(source, path, word, value)

    def _take(self, source: Source, path: str, word: str, value: Any) -> None:
        """Keeps a value, unless a place before this one says more."""
        table = path.partition(".")[0]
        if path in self._words or table in self._words or any(known.startswith(f"{path}.") for known in self._words):
            return
        self._words[path], self._where[path] = source.write(word), source.where
        try:
            self.values[path] = self.settings[path].from_text(value) if source.is_text else value
        except ValueError as error:
            self.problems.append(f"{source.where}{source.write(word)}: {error}")

    def _flat(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if name in self._tables and isinstance(value, Mapping) and value:
                yield from ((f"{name}.{inner}", one) for inner, one in value.items())
            else:
                yield name, value
