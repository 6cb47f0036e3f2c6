"""export_peft: an Adapter becomes a folder that Hugging Face PEFT loads, natively or as the equal LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from safetensors.torch import save
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.folded import factors_of, folded, folded_rank
from polyvera.adapter.layout import Site
from polyvera.adapter.method import method_named
from polyvera.errors import BasisError, SpecError
from polyvera.model.load import public_name
from polyvera.store.folder import check_free, write_folder
from polyvera.store.foreign import CONFIG_NAME, ForeignWarning
from polyvera.store.number_format import FULL, dtype_named, exact_dtype, written
from polyvera.store.peft.basis import PEFT_INIT
from polyvera.store.peft.card import model_card, warnings_of
from polyvera.store.peft.config import (
    BASIS_KEYS,
    OWN_KEY,
    PEFT_METHODS,
    PREFIX,
    WEIGHTS_NAME,
    PeftMethod,
    row_of,
    stored_shape,
)
from polyvera.store.peft.expert_parameters import TURNED, kept, model_type, wrapped_name
from polyvera.store.peft.origin import origin_config, prefix_for, task_for
from polyvera.store.peft.rewritten import model_type_of, refusal
from polyvera.store.peft.sites import widest
from polyvera.store.peft.targets import target_names
from polyvera.store.peft.tasks import TASKS, PeftTask

LORA = PEFT_METHODS["LORA"]  # the kind that can say any row of the table
CARD_NAME = "README.md"
OWN_FILES = {CONFIG_NAME, WEIGHTS_NAME, CARD_NAME}
PEFT_VERSION = "0.21.2"  # the one that these folders are tested with

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def export_peft(
    adapter: Adapter,
    folder: str | Path,
    *,
    as_lora: bool = False,
    model_name: str | None = None,
    task_type: str | None = None,
    save_projection: bool = True,
    base_dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    model: nn.Module | None = None,
    dtype: str | None = None,
    rank_at_most: int | None = None,
) -> Path:
    """Writes a folder that PeftModel.from_pretrained loads with the same logits; returns its path.

    An adapter that PEFT has a method for is written as that method, bit for bit; any other, and any where as_lora is
    asked for, as the equal LoRA of one rank with alpha = rank (A' = d ⊙ A, B' = b ⊙ B), which rounds differently.

    model_name: the base model's name or path; None is the adapter's own. task_type: PEFT's, such as CAUSAL_LM; None is
    what is known of the adapter's base. save_projection=False leaves the basis out, for PEFT to draw it again: only
    where PEFT's draw on a base of base_dtype (None: of the basis's own dtype) is the same.
    overwrite: replaces a folder that holds nothing but an exported adapter. model: the bare base, which may be on the
    meta device unless the basis is computed from its weights; with it target_modules are short names where those name
    nothing else. dtype: of the numbers; None is
    the narrowest that keeps them. rank_at_most: what a server of LoRAs takes.

    Warns of what PEFT computes otherwise. Raises SpecError for layers that PEFT would take for others, for a magnitude
    in a plain LoRA and for a rank that is too high, BasisError, StoreError.
    """
    path = Path(folder).absolute()
    check_free(path, OWN_FILES, overwrite)
    adapter.check_whole()
    _check_stacks(adapter, _magnitude(adapter, as_lora))
    named = None if base_dtype is None else str(base_dtype).removeprefix("torch.")
    native = not as_lora and _is_native(adapter)
    config, tensors = _native(adapter) if native else _folded(adapter, _magnitude(adapter, as_lora), model)
    _check_read(adapter, config, model, model_name, rank_at_most)
    trained = tensors | {PREFIX + key: adapter.tensors[key] for key, _ in adapter.layout.head}
    chosen = exact_dtype(trained.values()) if dtype is None else dtype_named(dtype)
    files = written(trained, chosen)
    if native and adapter.spec.row.shares_basis:
        _check_redraw(adapter, save_projection, named)
        config |= _basis_config(adapter, save_projection)
        basis = _basis_tensors(adapter) if save_projection else {}
        files |= written(basis, chosen if exact_dtype(basis.values()) == chosen else FULL)
    elif not save_projection or named is not None:
        raise SpecError("save_projection=False and base_dtype are for a shared basis, and this folder holds none")
    for warning in warnings_of(adapter):
        warn(warning, ForeignWarning, stacklevel=2)
    task = task_for(adapter, task_type, tuple(_heads(adapter)))
    config |= _shared_config(adapter, config["peft_type"], model_name, model) | origin_config(adapter, task)
    prefix = prefix_for(adapter, model) if task is TASKS["FEATURE_EXTRACTION"] else ""
    _write(path, adapter, _bare_config(config, prefix), {_bare(key, prefix): t for key, t in files.items()}, task)
    return path


def _bare(name: str, prefix: str) -> str:
    """A name of PEFT's without what the bare backbone has not."""
    for begin in (PREFIX, "^", ""):
        whole = begin + (re.escape(prefix) if begin == "^" else prefix)
        if prefix and name.startswith(whole):
            return begin + name.removeprefix(whole)
    return name


def _bare_config(config: Config, prefix: str) -> Config:
    patterns = {k: config[k] for k in ("rank_pattern", "alpha_pattern") if config.get(k)}
    named = {k: {_bare(name, prefix): value for name, value in found.items()} for k, found in patterns.items()}
    targets = config["target_modules"]
    several = targets if isinstance(targets, str) else [_bare(name, prefix) for name in targets]
    return {**config, **named, "target_modules": several}


def _magnitude(adapter: Adapter, as_lora: bool) -> bool:
    """Whether a magnitude stays beside A and B; a plain LoRA has none."""
    return not as_lora and "m" in adapter.spec.row.factors


def _check_read(
    adapter: Adapter, config: Config, model: nn.Module | None, name: str | None, rank_at_most: int | None
) -> None:
    """Raises SpecError for what a reader would refuse or take for something else."""
    family = model_type_of(adapter.model or name or "")
    if model is not None:
        family = model_type(model) or family
    if _stacks(adapter) and family in TURNED:
        raise SpecError(
            f"PEFT takes the experts of a {family} the other way round: leave out {_stacks(adapter)[0]}, or use `merge`"
        )
    linear = [site.name for site in adapter.layout.sites if not site.num_experts]
    reason = refusal(family, config["peft_type"], linear)
    if reason:
        raise SpecError(reason)
    rank = config.get(LORA.rank) if config["peft_type"] == LORA.name else None
    if rank_at_most is not None and (rank is None or rank > rank_at_most):
        has = "it is not written as a LoRA: also ask for as_lora" if rank is None else f"it has rank {rank}"
        raise SpecError(f"rank_at_most={rank_at_most}, but {has}; vLLM takes more with --max-lora-rank")


def _stacks(adapter: Adapter) -> list[str]:
    """The adapted stacks of experts."""
    return [site.name for site in adapter.layout.sites if site.num_experts]


def _shared_config(adapter: Adapter, peft_type: str, model_name: str | None, model: nn.Module | None) -> Config:
    given, stacks = model_name or adapter.model, _stacks(adapter)
    experts: Config = {"target_parameters": stacks} if stacks else {}
    return experts | {
        "base_model_name_or_path": public_name(given)[0] or None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,  # PEFT sets it itself on Conv1D
        "target_modules": target_names(adapter, model),
        "modules_to_save": _heads(adapter) or None,
        "peft_version": PEFT_VERSION,
        PEFT_METHODS[peft_type].dropout: 0.0 if stacks else adapter.spec.dropout,  # PEFT has none for parameters
    }


def _is_native(adapter: Adapter) -> bool:
    """Whether PEFT has a method that says this adapter exactly."""
    spec, row, kind = adapter.spec, adapter.spec.row, PEFT_METHODS[adapter.spec.row.peft_type]
    ranks = {site.rank for site in adapter.layout.sites}
    if kind.masked:
        fits = max(ranks) <= spec.common_rank and not spec.alpha_pattern and (spec.alpha is None or spec.alpha > 0)
    else:
        fits = min(ranks) > 0
    if _stacks(adapter) and (kind is not LORA or "m" in row.factors):  # PEFT's target_parameters are plain LoRA's
        return False
    own_pair = method_named(spec.method).shares_basis and not row.shares_basis
    return (
        fits
        and not own_pair
        and set(row.trained) <= set(row.peft_keys)
        and (spec.scaling or row.scaling) in kind.scalings
    )


def _native(adapter: Adapter) -> tuple[Config, Tensors]:
    spec, row, kind = adapter.spec, adapter.spec.row, PEFT_METHODS[adapter.spec.row.peft_type]
    basis = adapter.basis()
    tensors: Tensors = {}
    for site in adapter.layout.sites:
        factors = factors_of(adapter, site, basis)
        for letter, key in row.peft_keys.items():
            if letter in factors:
                tensors |= _named(adapter, site, kind, letter, key, factors[letter])
    ranks = {site.name: site.rank for site in adapter.layout.sites}
    rank = spec.common_rank
    config: Config = {"peft_type": kind.name, kind.rank: rank, **kind.extras}
    if kind.alpha is None:
        return config, tensors
    alpha = spec.common_alpha
    config |= {kind.alpha: _number(alpha), **kind.scalings[spec.scaling or row.scaling]}
    if kind.masked:
        masks = {f"{n}.{row.peft_keys['d']}": _mask(r, rank) for n, r in ranks.items() if r != rank}
        return {**config, "rank_pattern": masks or None}, tensors
    alphas = {n: a for n in ranks if (a := spec.alpha_of(n)) != alpha}
    return {**config, "use_dora": "m" in row.factors, **_patterns(rank, ranks, alphas)}, tensors


def _check_stacks(adapter: Adapter, magnitude: bool) -> None:
    """Raises SpecError for experts with a magnitude."""
    stacks = _stacks(adapter)
    if stacks and magnitude:
        raise SpecError(
            f"PEFT's target_parameters knows no magnitude, and {adapter.layout.method.name} trains one for {stacks[0]}:"
            " leave the experts out, or use `merge`"
        )


def _named(adapter: Adapter, site: Site, kind: PeftMethod, letter: str, key: str, value: Tensor) -> Tensors:
    """A factor of one layer as PEFT's file has it."""
    if site.num_experts:
        return {f"{PREFIX}{wrapped_name(site.name, adapter.layout.site_names)}.{key}": kept(letter, value)}
    return {f"{PREFIX}{site.name}.{key}": value.reshape(stored_shape(kind, letter, tuple(value.shape)))}


def _folded(adapter: Adapter, magnitude: bool, model: nn.Module | None) -> tuple[Config, Tensors]:
    """The equal LoRA of one rank, alpha = rank, so that no reader scales it; with a magnitude where the row has one."""
    keys, rank = row_of(LORA, magnitude).peft_keys, folded_rank(adapter)
    layers = folded(adapter, magnitude=magnitude, model=model)
    tensors: Tensors = {}
    for site in adapter.layout.sites:
        for letter, value in layers[site.name].items():
            tensors |= _named(adapter, site, LORA, letter, keys[letter], value)
    scale = {LORA.alpha or "": rank, "use_rslora": False, "use_dora": magnitude}
    return {"peft_type": LORA.name, LORA.rank: rank, **scale, "rank_pattern": {}, "alpha_pattern": {}}, tensors


def _patterns(rank: int, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> Config:
    """rank_pattern and alpha_pattern, each key an expression that matches one layer's whole name."""
    return {
        "rank_pattern": {_whole(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {_whole(n): _number(a) for n, a in alphas.items()},
    }


def _whole(name: str) -> str:
    return "^" + re.escape(name)


def _mask(kept: int, rank: int) -> list[bool]:
    return [True] * kept + [False] * (rank - kept)


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _own_widths(adapter: Adapter) -> tuple[int, int]:
    return widest({s.name: s.widths for s in adapter.layout.sites})


def _check_redraw(adapter: Adapter, save_projection: bool, dtype: str | None) -> None:
    key = adapter.layout.basis
    assert key is not None
    if save_projection:
        if dtype is not None:
            raise SpecError("base_dtype has no effect where the basis is saved: leave it out")
        return
    if key.init != PEFT_INIT or (key.in_max, key.out_max) != _own_widths(adapter) or (dtype or key.dtype) != key.dtype:
        raise BasisError(
            f"PEFT would draw another basis than {key}: on {dtype or key.dtype} weights it draws {PEFT_INIT} of widths "
            f"{_own_widths(adapter)} in {dtype or key.dtype}; leave save_projection=True"
        )


def _basis_config(adapter: Adapter, save_projection: bool) -> Config:
    """PEFT's choices of a basis, then the key and sha256 of the whole one, which PEFT skips with a warning."""
    key = adapter.layout.basis
    assert key is not None
    return {
        "projection_prng_key": adapter.spec.seed,
        "save_projection": save_projection,
        "d_initial": adapter.spec.d_init,
        "basis_init": key.init,
        "basis_dtype": key.dtype,
        "in_max": key.in_max,
        "out_max": key.out_max,
        "basis_sha256": adapter.basis_sha256,
    }


def _basis_tensors(adapter: Adapter) -> Tensors:
    """A and B as wide as the adapter's own widest layers: PEFT refuses a wider pair."""
    basis, (wide, tall) = adapter.basis(), _own_widths(adapter)
    assert basis is not None
    return {BASIS_KEYS["A"]: basis.A[:, :wide], BASIS_KEYS["B"]: basis.B[:tall]}


def _heads(adapter: Adapter) -> list[str]:
    """The spec's own heads, and the top module of a tensor that is in none of them."""
    own = adapter.spec.head
    keys = [key for key, _ in adapter.layout.head]
    return sorted({next((h for h in own if key.startswith(f"{h}.")), key.partition(".")[0]) for key in keys})


def _write(path: Path, adapter: Adapter, config: Config, files: Tensors, task: PeftTask | None) -> None:
    base = config["base_model_name_or_path"] or ""
    if adapter.model and adapter.model != base:
        config[OWN_KEY]["model"] = adapter.model
    config["revision"] = config["revision"] or public_name(adapter.model)[1] or None
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    card = model_card(adapter, base, config["peft_type"], task)
    weights = save(files, {"format": "pt"})
    write_folder(path, {WEIGHTS_NAME: weights, CONFIG_NAME: text.encode(), CARD_NAME: card.encode()})
