"""Where a registry's files lie below its root.

adapters/<name>/<version>.safetensors     one file a version
aliases/<name>/@<alias>                   the number of a version
bases/<sha256>.safetensors                one file a made basis
bases/@<name>                             the sha256 of a made basis
"""

from __future__ import annotations

from polyvera.adapter.spec import DIGEST
from polyvera.store.reference import SUFFIX, VERSION, is_name

ADAPTERS, ALIASES, BASES = "adapters", "aliases", "bases"


def adapter_path(name: str, version: int) -> str:
    """The file of one version."""
    return f"{ADAPTERS}/{name}/{version}{SUFFIX}"


def alias_path(name: str, alias: str) -> str:
    """The file of one alias; its @ distinguishes the alias `b` of the name `a` from the folder of the name `a/b`."""
    return f"{ALIASES}/{name}/@{alias}"


def parse_adapter(path: str) -> tuple[str, int]:
    """The name and version of an adapter's file, or ('', 0) for any other."""
    folder, _, file = path.rpartition("/")
    version = file.removesuffix(SUFFIX)
    if not (file.endswith(SUFFIX) and VERSION.fullmatch(version) and folder.startswith(f"{ADAPTERS}/")):
        return "", 0
    name = folder[len(ADAPTERS) + 1 :]
    return (name, int(version)) if is_name(name) else ("", 0)


def parse_alias(path: str) -> tuple[str, str]:
    """The name and alias of an alias's file, or ('', '') for any other."""
    folder, _, file = path.rpartition("/")
    name = folder[len(ALIASES) + 1 :]
    if not (folder.startswith(f"{ALIASES}/") and file.startswith("@") and is_name(name)):
        return "", ""
    return name, file[1:]


def basis_path(sha256: str) -> str:
    """The file of a made basis."""
    return f"{BASES}/{sha256}{SUFFIX}"


def basis_name_path(name: str) -> str:
    """The file of the name of a made basis."""
    return f"{BASES}/@{name}"


def parse_basis(path: str) -> str:
    """The sha256 of a made basis's file, or '' for any other."""
    sha256 = path.removeprefix(f"{BASES}/").removesuffix(SUFFIX)
    return sha256 if DIGEST.fullmatch(sha256) and path == basis_path(sha256) else ""
