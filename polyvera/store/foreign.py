"""What a path is that is not the adapter folder asked for: other trainers' formats, named with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvera.store.regular_file import read_regular

CONFIG_NAME = "adapter_config.json"
CONFIG_BYTES = 16 * 2**20


class ForeignWarning(UserWarning):
    """What was done as asked, and is read or computed otherwise by another program."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """One kind of folder. matches: told by the names of its files and its adapter_config.json ({} without one)."""

    title: str
    remedy: str
    matches: Callable[[frozenset[str], dict[str, Any]], bool]


def _has(*names: str) -> Callable[[frozenset[str], dict[str, Any]], bool]:
    return lambda files, config: any(name in files for name in names)


MLX = Foreign(
    "an adapter of mlx-lm",
    "`polyvera import` and import_mlx() read it",
    lambda files, config: (
        "adapters.safetensors" in files or ("lora_parameters" in config and "peft_type" not in config)
    ),
)
FOREIGN = (
    MLX,
    Foreign(
        "an adapter of the `adapters` library",
        "no program converts it exactly; merge it there (model.merge_adapter) and use the result as a base model",
        lambda files, config: "pytorch_adapter.bin" in files or ("model_class" in config and "config" in config),
    ),
    Foreign(
        "a LoRA of diffusers",
        "it adapts an image model; convert it with diffusers' own scripts",
        _has("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
    ),
    Foreign(
        "a whole model",
        "give it as --model, or train an adapter of it",
        lambda files, config: "config.json" in files and any(n.startswith(("model", "pytorch_model")) for n in files),
    ),
    Foreign(
        "a GGUF file's folder",
        "polyvera writes GGUF adapters and does not read them; import the adapter that it was converted from",
        lambda files, config: any(name.endswith(".gguf") for name in files) and not config,
    ),
)
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_transformer_")


def foreign(path: Path) -> Foreign | None:
    """The kind of another program's folder, None where none is recognized."""
    if not path.is_dir():
        return None
    files = frozenset(entry.name for entry in path.iterdir())
    return next((kind for kind in FOREIGN if kind.matches(files, _config(path))), None)


def diagnosis(path: Path, wanted: str) -> str:
    """What a path is that isn't the folder which was asked for, in words; empty where nothing is known of it.

    wanted: what was asked for, such as 'a PEFT folder'.
    """
    if path.is_file():
        return f"{path.name} is a file, not {wanted}{_of_file(path)}: give the folder that it lies in"
    if not path.exists():
        return f"there is no folder {str(path)!r}"
    kind = foreign(path)
    if kind is not None:
        return f"{path.name} is {kind.title}, not {wanted}: {kind.remedy}"
    inner = sorted(p.parent.name for p in path.glob(f"*/{CONFIG_NAME}"))
    named = f"; it holds the adapters {', '.join(inner)}, each a folder of its own" if inner else ""
    return f"{path.name} is not {wanted}: it has no {CONFIG_NAME}{named}"


def _of_file(path: Path) -> str:
    """What a lone file is, as a part of a message."""
    if path.suffix == ".gguf":
        return " but GGUF, which is written here and not read"
    if path.suffix != ".safetensors":
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names, own = list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return ""
    if "polyvera" in own:
        return " but an adapter of polyvera's own, which a store reads as it is"
    is_kohya = any(name.startswith(KOHYA) for name in names)
    return " but a LoRA of kohya's trainers for image models, which is not read" if is_kohya else ""


def _config(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path / CONFIG_NAME, CONFIG_BYTES, follows_links=True).decode()
        tree = json.loads(text.lstrip("\ufeff"))
    except (OSError, ValueError, RecursionError):  # what is no regular file is a FormatError, which is a ValueError
        return {}
    return tree if isinstance(tree, dict) else {}
