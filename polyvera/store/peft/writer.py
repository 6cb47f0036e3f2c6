"""export_peft: an Adapter becomes a folder that Hugging Face PEFT loads, natively or as the equal LoRA."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor

from polyvera.adapter.adapter import Adapter, drawn_factors
from polyvera.adapter.basis import Basis
from polyvera.adapter.layout import Site
from polyvera.adapter.spec import is_named
from polyvera.adapter.targets import ALL_LINEAR, DEFAULT
from polyvera.errors import BasisError, SpecError, StoreError
from polyvera.model.answer import meaning_of
from polyvera.store.peft.basis import PEFT_INIT
from polyvera.store.peft.config import (
    BASIS_KEYS,
    CONFIG_NAME,
    PEFT_METHODS,
    PREFIX,
    TASK_HEADS,
    WEIGHTS_NAME,
    row_of,
    stored_shape,
    widest,
)
from polyvera.store.peft.rewritten import model_type_of, refusal

LORA = PEFT_METHODS["LORA"]  # the kind that can say any row of the table
OWN_FILES = {CONFIG_NAME, WEIGHTS_NAME, "README.md"}

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
) -> Path:
    """Writes a folder that PeftModel.from_pretrained loads with the same logits; returns its path.

    An adapter that PEFT has a method for is written as that method, bit for bit; any other, and any where as_lora is
    asked for, as the equal LoRA (A' = d ⊙ A, B' = b ⊙ B, alpha = rank), which rounds differently.

    model_name: the base model's name or path; None is the adapter's own. task_type: PEFT's, such as CAUSAL_LM; None is
    SEQ_CLS where the adapter has such a head, and else a plain PeftModel of any model. save_projection=False leaves the
    basis out, for PEFT to draw it again: only where PEFT's draw on a base of base_dtype (None: of the basis's own
    dtype) is the same.
    overwrite: replaces a folder that holds nothing but an exported adapter. Raises SpecError for layers that PEFT would
    take for others, BasisError, StoreError.
    """
    path = Path(folder).absolute()
    _check_free(path, overwrite)
    dtype = None if base_dtype is None else str(base_dtype).removeprefix("torch.")
    native = _is_native(adapter) and not (as_lora and adapter.spec.row.peft_type != LORA.name)
    config, tensors = _native(adapter) if native else _folded(adapter)
    reason = refusal(model_type_of(adapter.model or model_name or ""), config["peft_type"], adapter.layout.site_names)
    if reason:
        raise SpecError(reason)
    if native and adapter.spec.row.shares_basis:
        _check_redraw(adapter, save_projection, dtype)
        config |= _basis_config(adapter, save_projection)
        tensors |= _basis_tensors(adapter) if save_projection else {}
    elif not save_projection or dtype is not None:
        raise SpecError("save_projection=False and base_dtype are for a shared basis, and this folder holds none")
    dropout = {PEFT_METHODS[config["peft_type"]].dropout: adapter.spec.dropout}
    config |= dropout | _shared_config(adapter, model_name or adapter.model or None, _task_type(adapter, task_type))
    tensors |= {PREFIX + key: adapter.tensors[key] for key, _ in adapter.layout.head}
    _write(path, config, tensors)
    return path


def factors_of(adapter: Adapter, site: Site, basis: Basis | None) -> Tensors:
    """Every factor of an adapter in one layer by its letter: the trained, those cut from the basis, the drawn."""
    own = {k: adapter.tensors[f"{site.name}.{k}"] for k in adapter.layout.method.trained}
    if basis is not None:
        return {**own, "A": basis.A[:, : site.in_features], "B": basis.B[: site.out_features]}
    return {**own, **drawn_factors(adapter.layout, site)}


def _is_native(adapter: Adapter) -> bool:
    """Whether PEFT has a method that says this adapter exactly."""
    spec, row, kind = adapter.spec, adapter.spec.row, PEFT_METHODS[adapter.spec.row.peft_type]
    ranks = {site.rank for site in adapter.layout.sites}
    if kind.masked:
        fits = max(ranks) <= _rank(adapter) and not spec.alpha_pattern and (spec.alpha is None or spec.alpha > 0)
    else:
        fits = min(ranks) > 0
    return fits and set(row.trained) <= set(row.peft_keys) and (spec.scaling or row.scaling) in kind.scalings


def _native(adapter: Adapter) -> tuple[Config, Tensors]:
    spec, row, kind = adapter.spec, adapter.spec.row, PEFT_METHODS[adapter.spec.row.peft_type]
    basis = adapter.basis()
    tensors: Tensors = {}
    for site in adapter.layout.sites:
        factors = factors_of(adapter, site, basis)
        for letter, key in row.peft_keys.items():
            if letter in factors:
                value = factors[letter]
                tensors[f"{PREFIX}{site.name}.{key}"] = value.reshape(stored_shape(kind, letter, tuple(value.shape)))
    ranks = {site.name: site.rank for site in adapter.layout.sites}
    config: Config = {"peft_type": kind.name, kind.rank: _rank(adapter), **kind.extras}
    if kind.alpha is None:
        return config, tensors
    alpha = spec.alpha if spec.alpha is not None else _rank(adapter)
    config |= {kind.alpha: _number(alpha), **kind.scalings[spec.scaling or row.scaling]}
    if kind.masked:
        masks = {f"{n}.{row.peft_keys['d']}": _mask(r, _rank(adapter)) for n, r in ranks.items() if r != _rank(adapter)}
        return {**config, "rank_pattern": masks or None}, tensors
    alphas = {n: a for n, a in spec.alpha_pattern if a != alpha}
    return {**config, "use_dora": "m" in row.factors, **_patterns(_rank(adapter), ranks, alphas)}, tensors


def _folded(adapter: Adapter) -> tuple[Config, Tensors]:
    """The equal LoRA, with a magnitude where the row has one; a layer of rank 0 becomes one of rank 1 that is 0."""
    magnitude = "m" in adapter.spec.row.factors
    keys, basis, rank = row_of(LORA, magnitude).peft_keys, adapter.basis(), _rank(adapter)
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    for site in adapter.layout.sites:
        factors = _lora_factors(factors_of(adapter, site, basis), site)
        ranks[site.name] = factors["A"].shape[0]
        tensors |= {f"{PREFIX}{site.name}.{keys[k]}": v for k, v in factors.items()}
    scale = {LORA.alpha or "": rank, "use_rslora": False, "use_dora": magnitude}
    alphas: dict[str, float] = {n: r for n, r in ranks.items() if r != rank}
    return {"peft_type": LORA.name, LORA.rank: rank, **scale, **_patterns(rank, ranks, alphas)}, tensors


def _lora_factors(factors: Tensors, site: Site) -> Tensors:
    A, B, d, b = (factors.get(k) for k in ("A", "B", "d", "b"))
    assert A is not None and B is not None
    A = A if d is None else d[:, None] * A
    B = (B if b is None else b[:, None] * B) * (site.scale[0] / site.scale[1])
    if site.rank == 0:
        A, B = torch.zeros(1, site.in_features), torch.zeros(site.out_features, 1)
    return {"A": A, "B": B} | {k: v for k, v in factors.items() if k == "m"}


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


def _rank(adapter: Adapter) -> int:
    return adapter.spec.rank or adapter.spec.row.rank


def _own_widths(adapter: Adapter) -> tuple[int, int]:
    return widest({s.name: (s.in_features, s.out_features) for s in adapter.layout.sites})


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


def _shared_config(adapter: Adapter, model_name: str | None, task_type: str | None) -> Config:
    return {
        "base_model_name_or_path": model_name,
        "task_type": task_type,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,  # PEFT sets it itself on Conv1D
        "target_modules": _targets(adapter),
        "modules_to_save": _heads(adapter) or None,
    }


def _targets(adapter: Adapter) -> list[str]:
    """The spec's own endings where each layer has one of them, else the full name of every layer."""
    names, given = [s.name for s in adapter.layout.sites], adapter.spec.targets
    if isinstance(given, str) and (given in (ALL_LINEAR, DEFAULT) or re.search(r"[^\w.\-]", given)):
        return sorted(names)
    endings = (given,) if isinstance(given, str) else given
    covered = all(any(is_named(n, e) for e in endings) for n in names)
    return sorted(set(endings) if covered and not adapter.spec.exclude else names)


def _heads(adapter: Adapter) -> list[str]:
    """The spec's own heads, and the top module of a tensor that is in none of them."""
    own = adapter.spec.head
    keys = [key for key, _ in adapter.layout.head]
    return sorted({next((h for h in own if key.startswith(f"{h}.")), key.partition(".")[0]) for key in keys})


def _task_type(adapter: Adapter, given: str | None) -> str | None:
    heads, of_classifiers = _heads(adapter), TASK_HEADS["SEQ_CLS"]
    if given is None:
        own = meaning_of(adapter).row.peft if adapter.task else "SEQ_CLS"
        return own if heads and all(h.endswith(of_classifiers) for h in heads) else None
    if given in TASK_HEADS and not any(h.endswith(TASK_HEADS[given]) for h in heads):
        raise SpecError(
            f"task_type={given!r}: PEFT wants the trained head of such a model ({' or '.join(TASK_HEADS[given])}), and "
            f"this adapter has {', '.join(heads) or 'no head'}; use FEATURE_EXTRACTION"
        )
    return given


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; name a folder")
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    others = [name for name in held if name not in OWN_FILES]
    if others:
        raise StoreError(
            f"{path} holds {others[0]!r}, no part of an exported adapter, and is not replaced; name another"
        )
    if held and not overwrite:
        raise StoreError(f"{path} holds an adapter; pass overwrite=True to replace it, or name another folder")


def _write(path: Path, config: Config, tensors: Tensors) -> None:
    """Written aside and renamed, so that a reader never sees half an adapter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (path.with_name(f".{path.name}.{uuid4().hex}.{word}") for word in ("new", "old"))
    try:
        aside.mkdir()
        plain = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        save_file(plain, aside / WEIGHTS_NAME, {"format": "pt"})
        (aside / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
