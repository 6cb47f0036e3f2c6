"""Checkpoint: what a killed run needs to go on as if it had not been, the trained tensors and none of the base's."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from polyvera.data.encoding import Encoded
from polyvera.errors import RecipeError, message_of
from polyvera.store.durable import replace_file
from polyvera.train.recipe import Recipe

RECIPE = "recipe.json"
PREFIX = "checkpoint-"
STATE = "trainer_state.json"  # the file that transformers writes last
BASE = "fingerprint of the base model"
FILES = "files.json"  # and ours behind it: the sha256 of every file


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors in one safetensors file, whole or not at all."""
    replace_file(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `write`. Raises RecipeError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be resumed from: {error}") from error


def read_into(path: Path, model: nn.Module) -> None:
    """Sets the trained parameters to those of the file. Raises RecipeError where names or shapes differ."""
    stored, here = read(path), trained(model)
    if {k: t.shape for k, t in stored.items()} != {k: p.shape for k, p in here.items()}:
        raise RecipeError(f"{path} holds {len(stored)} tensors of another run: this one trains {len(here)} others")
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(stored[name])


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None. One with a file that can't be read does not count."""
    return next((path for path in _ended(folder) if damaged_file(path) is None), None)


def seal(checkpoint: Path) -> None:
    """Writes which files a checkpoint has, once all of them are on the disk."""
    files = sorted(file for file in checkpoint.iterdir() if file.is_file() and file.name != FILES)
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    replace_file(checkpoint / FILES, json.dumps({file.name: _sha256(file) for file in files}, indent=1).encode())


def damaged_file(checkpoint: Path) -> Path | None:
    """The first file of a checkpoint that can't be read, is not what was written, or is missing; or None."""
    unreadable = next((file for file in sorted(checkpoint.iterdir()) if not _is_readable(file)), None)
    if unreadable is not None or not (checkpoint / FILES).exists():
        return unreadable
    written: dict[str, str] = json.loads((checkpoint / FILES).read_text())
    if STATE not in written:
        return checkpoint / FILES
    found = (checkpoint / name for name, digest in written.items() if not _is(checkpoint / name, digest))
    return next(found, None)


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and _sha256(file) == digest


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_new(folder: Path, *, resume: bool) -> None:
    """Raises RecipeError where the folder holds a run and resume is false, or a run of damaged checkpoints alone."""
    ended = _ended(folder)
    if ended and not resume:
        raise RecipeError(f"output={str(folder)!r} holds a run already: resume it, or choose another folder")
    if ended and last(folder) is None:
        raise RecipeError(
            f"{damaged_file(ended[0])} is damaged, and there is no other checkpoint to resume from: begin again in "
            "another folder"
        )


def _ended(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, the newest first."""
    found = {path: step for path in folder.glob(f"{PREFIX}*") if (step := _step(path)) is not None}
    return sorted(found, key=lambda path: -found[path])


def _is_readable(file: Path) -> bool:
    try:
        return READABLE.get(file.suffix, Path.is_file)(file)
    except Exception:  # whatever is raised, it can't be read
        return False


def _is_safetensors(file: Path) -> bool:
    with safe_open(file, "pt"):
        return True


# How a file is looked at, by its ending: torch.save() writes ZIP files, whose end is their table of contents.
READABLE: Mapping[str, Callable[[Path], bool]] = MappingProxyType(
    {
        ".safetensors": _is_safetensors,
        ".pt": zipfile.is_zipfile,
        ".pth": zipfile.is_zipfile,
        ".json": lambda file: isinstance(json.loads(file.read_text()), dict),
    }
)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """transformers' own record of the run at a checkpoint, or an empty one where it is not whole."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def begin(folder: Path, recipe: Recipe, rows: Encoded, base: str = "", *, resume: bool) -> Path | None:
    """Opens the run's folder; returns the checkpoint to go on from, or None to start from the beginning.

    base: the fingerprint of the base model. Raises RecipeError where the folder holds a run and resume is false, or
    where that run's recipe, rows or base were others.
    """
    check_new(folder, resume=resume)
    at, file = last(folder), folder / RECIPE
    choices = {**recipe.of_the_run(), "sha256 of the rows": rows.sha256, BASE: base}
    if at is None:
        file.unlink(missing_ok=True)
        keep_recipe(folder, choices)
        return None
    keep_recipe(folder, choices)
    return at


def keep_recipe(folder: Path, choices: Mapping[str, Any]) -> None:
    """Writes a run's choices into its folder. Raises RecipeError where it holds a run with others."""
    file = folder / RECIPE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(choices, indent=1).encode())
        return
    try:
        before = dict(json.loads(file.read_text()))
    except Exception as error:  # whatever is wrong with the file
        raise RecipeError(
            f"{file} cannot be read, and it says what the run was ({message_of(error)}): begin again in another folder"
        ) from error
    before.setdefault(BASE, choices.get(BASE))  # runs of earlier versions do not say
    changed = [f"{k} was {before.get(k)!r} and is {v!r}" for k, v in choices.items() if before.get(k) != v]
    if changed:
        raise RecipeError(f"{folder} cannot be resumed with another recipe: {'; '.join(changed)}")


def _step(path: Path) -> int | None:
    """The step of a checkpoint that was written to its end, as its seal says, or its state in earlier versions."""
    number = path.name.removeprefix(PREFIX)
    if number.isdecimal() and (path / FILES).exists():
        return int(number)
    step = state_of(path).get("global_step")
    return step if number == f"{step}" else None
