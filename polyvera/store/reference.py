"""Names and references: `team/task`, `team/task@3`, `team/task@prod`, and the AdapterRef that a registry gives back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from polyvera.errors import ReferenceNameError

LATEST = "latest"
SUFFIX = ".safetensors"
MAX_SEGMENTS = 3
SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
MAX_VERSION = 999_999_999
# Windows reads these as devices, whatever extension follows.
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)
RULE = (
    f"a name is 1 to {MAX_SEGMENTS} parts joined by '/', each 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter "
    "or digit"
)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """One published version. path: its file's path or URL. digest: the sha256 in the file, '' where it was not read."""

    name: str
    version: int
    path: str
    num_bytes: int
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a text asks for: an exact version, else an alias, else (neither) the latest version."""

    name: str
    version: int | None = None
    alias: str | None = None


def parse_reference(text: str) -> Reference:
    """`name`, `name@latest`, `name@3` or `name@alias`. Raises ReferenceNameError for anything else."""
    name, at, tag = text.partition("@")
    check_name(name)
    if not at or tag == LATEST:
        return Reference(name)
    if tag.isdigit():
        return Reference(name, version=check_version(tag))
    return Reference(name, alias=check_alias(tag))


@lru_cache(maxsize=2**16)
def check_name(name: str) -> str:
    """The name itself. Raises ReferenceNameError, with the rule, for one that could not be a folder everywhere."""
    segments = name.split("/")
    if len(segments) > MAX_SEGMENTS:
        raise ReferenceNameError(f"the name {name!r} has {len(segments)} parts; {RULE}")
    for segment in segments:
        _check_segment(segment, f"the name {name!r}")
    return name


def is_name(name: str) -> bool:
    """Whether check_name() takes it."""
    try:
        check_name(name)
    except ReferenceNameError:
        return False
    return True


def check_alias(alias: str) -> str:
    """The alias itself. Raises ReferenceNameError for a number, `latest`, or what could not be a file everywhere."""
    _check_segment(alias, f"the alias {alias!r}")
    if alias.isdigit() or alias == LATEST:
        raise ReferenceNameError(
            f"the alias {alias!r} would hide a version: numbers and {LATEST!r} are taken, choose a word"
        )
    return alias


@lru_cache(maxsize=2**12, typed=True)
def check_version(given: str | int) -> int:
    """The version as a number. Raises ReferenceNameError for all but 1, 2, 3, ... in plain digits."""
    if isinstance(given, bool) or not VERSION.fullmatch(str(given)):
        raise ReferenceNameError(
            f"the version {given!r} is not a whole number from 1 up, written without leading zeros"
        )
    return int(given)


def _check_segment(segment: str, where: str) -> None:
    if not SEGMENT.fullmatch(segment):
        raise ReferenceNameError(f"{where} has the part {segment!r}; {RULE}")
    if segment.endswith(".") or DEVICES.fullmatch(segment):
        raise ReferenceNameError(
            f"{where} has the part {segment!r}, which Windows cannot hold as a file; choose another"
        )
    if segment.lower().endswith(SUFFIX):
        raise ReferenceNameError(f"{where} ends in {SUFFIX}, as the files themselves do; leave the ending out")
