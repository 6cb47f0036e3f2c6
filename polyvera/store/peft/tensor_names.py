"""Names of tensors that wrappers, other savers and older transformers changed, and the way back to PEFT's own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn

from polyvera.errors import FormatError
from polyvera.store.foreign import CONFIG_NAME

# What DDP, FSDP, DeepSpeed, Lightning, torch.compile and activation checkpointing put between the parts of a name.
WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_flat_param",
        "pretrained_model",  # TRL's models with a value head
    )
)
PREFIX = ("base_model", "model")
LETTER = re.compile(r"(?:lora|vera)_\w+")
SAVED = "modules_to_save"
REPLACED = "original_module"  # what a module saved whole stands in for; nothing reads it
ADAPTED = "base_layer"

Rename = Callable[[str], str]


def canonical(key: str, adapters: Collection[str] = ("default",)) -> str:
    """A tensor's name without prefixes, wrappers and names of adapters: `layers.0.q_proj.lora_A`, `score.weight`.

    adapters: the names that PEFT may have put behind a letter or `modules_to_save`.
    """
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while tuple(parts[:2]) == PREFIX:
        parts = parts[2:]
    parts = parts[1:] if parts[:1] == [PREFIX[0]] else parts
    at = next((i for i, part in enumerate(parts) if LETTER.fullmatch(part)), None)
    if at is not None:
        return ".".join(parts[: at + 1] + [part for part in parts[-1:] if part == "bias"])
    if SAVED in parts:
        at = parts.index(SAVED)
        rest = parts[at + 1 :]
        return ".".join(parts[:at] + (rest[1:] if rest[0] in adapters and len(rest) > 1 else rest))
    return ".".join(parts)


def adapter_names(keys: Collection[str]) -> set[str]:
    """The names of adapters that a raw state dict has behind its letters."""
    found = (re.search(r"\.(?:lora|vera)_\w+\.(\w+)(?:\.weight|\.bias)?$", key) for key in keys)
    return {match[1] for match in found if match and match[1] not in ("weight", "bias")}


def found_names(wanted: Collection[str], found: Collection[str], model: nn.Module) -> Mapping[str, str]:
    """The name in a file of each wanted tensor.

    A renaming is undone where that leaves no doubt: each wanted tensor is there once. Raises FormatError where one is
    missing, or there twice.
    """
    if set(wanted) <= set(found):
        return {name: name for name in wanted}
    several = adapter_names(found)
    if len(several) > 1:
        raise FormatError(
            f"the file holds {len(several)} adapters: {', '.join(sorted(several))}; save one of them alone"
        )
    fewest: list[str] = sorted(wanted)
    for rename in _renames(model):
        named = _by_canonical(found, several | {"default"}, rename)
        own = {name: named.get(canonical(name), []) for name in wanted}
        twice = next((keys for keys in own.values() if len(keys) > 1), None)
        if twice is not None:
            raise FormatError(f"the file holds one tensor under two names: {twice[0]!r} and {twice[1]!r}")
        missing = sorted(name for name, keys in own.items() if not keys)
        if not missing:
            return {name: keys[0] for name, keys in own.items()}
        fewest = min(fewest, missing, key=len)
    raise FormatError(_missing(fewest, wanted, found))


def backbone_prefix(found: Collection[str], model: nn.Module) -> str:
    """What the names in a file leave out because they are of the bare backbone, such as `bert.`; else ''."""
    prefix, backbone = getattr(model, "base_model_prefix", ""), getattr(model, "base_model", model)
    adapted = {canonical(key).rpartition(".")[0] for key in found if LETTER.search(key)} - {""}
    inner, whole = ({name for name, _ in module.named_modules()} for module in (backbone, model))
    return f"{prefix}." if prefix and adapted and adapted <= inner and not adapted & whole else ""


def own_name(key: str, adapters: Collection[str] = ("default",)) -> str:
    """The name in the bare model of a tensor that PEFT saved beside an adapter."""
    return canonical(key, adapters).replace(f".{ADAPTED}.", ".")


def _by_canonical(found: Collection[str], adapters: Collection[str], rename: Rename) -> Mapping[str, list[str]]:
    named: dict[str, list[str]] = defaultdict(list)
    for key in sorted(found):
        if f".{REPLACED}." not in key:
            named[canonical(rename(canonical(key, adapters)))].append(key)
    # A module saved whole is there beside the base's own copy in a raw state dict.
    return {name: [k for k in keys if f".{SAVED}." in k] or keys for name, keys in named.items()}


def _missing(missing: list[str], wanted: Collection[str], found: Collection[str]) -> str:
    beside = sorted(set(found) - set(wanted))
    other = f", and holds {beside[0]!r}, which is not wanted" if beside else ""
    return (
        f"{len(missing)} of {len(wanted)} tensors are missing, among them {missing[0]!r}{other}: the file is cut, or "
        f"{CONFIG_NAME} is another adapter's"
    )


def _renames(model: nn.Module) -> Iterator[Rename]:
    """As it is, then as transformers renames checkpoints of older versions."""
    yield lambda name: name
    yield from _of_class(model)
    yield from _of_conversion(model)


def _of_class(model: nn.Module) -> Iterator[Rename]:
    patterns: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    if patterns:
        yield lambda name: next((re.sub(p, to, name) for p, to in patterns.items() if re.search(p, name)), name)


def _of_conversion(model: nn.Module) -> Iterator[Rename]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # an older transformers has its mapping on the class alone
        return
    if getattr(model, "config", None) is None:
        return
    whole: Any = model
    renamings = [one for one in get_model_conversion_mapping(whole) or () if isinstance(one, WeightRenaming)]
    if renamings:
        yield lambda name: rename_source_key(name, renamings, [])[0]
