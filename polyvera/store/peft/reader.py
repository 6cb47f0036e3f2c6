"""import_peft: a folder that Hugging Face PEFT wrote becomes an Adapter with the same logits, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.base_layer import widths
from polyvera.adapter.basis import Basis
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.layout import Shape
from polyvera.adapter.method import factor_shape
from polyvera.adapter.spec import AdapterSpec, Pattern
from polyvera.adapter.targets import find_sites, head_of, linear_layers
from polyvera.errors import FormatError, LayoutError, SpecError, TargetError
from polyvera.store.peft.basis import check_digest, recognized, redrawn
from polyvera.store.peft.config import (
    BASIS_KEYS,
    CONFIG_NAME,
    PICKLE_NAME,
    PREFIX,
    WEIGHTS_NAME,
    PeftConfig,
    Sites,
    compute_dtype,
    heads_of,
    of_pattern,
    read_config,
    sites_of,
    stored_shape,
    widest,
)

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor that must be in the file: its name and shape there, and its key and shape in the adapter."""

    stored: str
    stored_shape: Shape
    key: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """One folder's config against one base model: the layers it adapts, their ranks, and what it saves whole."""

    config: PeftConfig
    model: nn.Module
    sites: Sites
    ranks: Mapping[str, int]
    heads: Mapping[str, Shape]

    @property
    def wanted(self) -> list[Wanted]:
        """Every trained tensor."""
        found = [Wanted(PREFIX + key, shape, key, shape) for key, shape in self.heads.items()]
        row, kind = self.config.row, self.config.kind
        for site, (wide, tall) in self.sites.items():
            for letter in row.trained:
                shape = factor_shape(letter, self.ranks[site], wide, tall)
                name = f"{PREFIX}{site}.{row.peft_keys[letter]}"
                found.append(Wanted(name, stored_shape(kind, letter, shape), f"{site}.{letter}", shape))
        return found

    @property
    def stores_basis(self) -> bool:
        """Whether A and B come in the file."""
        return self.config.row.shares_basis and self.config.save_projection


def import_peft(folder: str | Path, model: nn.Module, *, basis_dtype: str | torch.dtype | None = None) -> Adapter:
    """A PEFT folder (VeRA, LoRA, rsLoRA, DoRA or AdaLoRA) as an Adapter whose logits equal PEFT's own, bit for bit.

    model: the base, which may be on the meta device. basis_dtype: what a VeRA basis that isn't in the file was rounded
    to in training, which is the dtype of the base's adapted weights unless said otherwise. Like PEFT, it rounds the
    layers that AdaLoRA has pruned to a low-precision base's dtype. Raises FormatError for files that are broken or
    hold more than an adapter can, SpecError for a choice that cannot be imported, LayoutError where the model doesn't
    fit, BasisError where the basis isn't the one of training.
    """
    path = Path(folder)
    _check_files(path)
    peft = _folder(read_config(path / CONFIG_NAME), model)
    with _opened(path / WEIGHTS_NAME) as file:
        _check_keys(peft, file)
        tensors = {w.key: _read(file, w.stored, w.stored_shape).reshape(w.shape) for w in peft.wanted}
        stored = {k: _read_basis(peft, file, k) for k in BASIS_KEYS} if peft.stores_basis else None
    spec, basis = _with_basis(peft, stored, basis_dtype)
    base = "" if any(p.is_meta for p in model.parameters()) else fingerprint(model)
    adapter = adapter_from(spec, peft.sites, _rounded(peft, tensors), basis, base)
    if stored is None:
        check_digest(peft.config, adapter.basis_sha256)
    return replace(adapter, model=peft.config.base_model_name_or_path or "")


def _folder(config: PeftConfig, model: nn.Module) -> PeftFolder:
    sites = sites_of(config, model)
    return PeftFolder(config, model, sites, {n: _rank(config, n) for n in sites}, heads_of(config, model))


def _rank(config: PeftConfig, site: str) -> int:
    rank: int = config.required(config.kind.rank)
    if not config.kind.masked:
        found = of_pattern(config, "rank_pattern", site, rank)
        if not isinstance(found, int):
            raise FormatError(f"rank_pattern gives {site} {found!r}, which is not a rank")
        return found
    mask = (config.rank_pattern or {}).get(_mask_key(config, site), [True] * rank)
    if not isinstance(mask, list) or len(mask) != rank:
        raise FormatError(f"rank_pattern gives {site} {mask!r}, which is not a mask of {rank} ranks")
    return sum(mask)


def _mask_key(config: PeftConfig, site: str) -> str:
    return f"{site}.{config.row.peft_keys['d']}"


def _spec(peft: PeftFolder) -> AdapterSpec:
    config, row = peft.config, peft.config.row
    rank = config.required(config.kind.rank)
    alpha, alphas = _alphas(peft) if row.takes_alpha else (None, ())
    spec = AdapterSpec(
        row.name,
        rank,
        alpha=alpha,
        scaling=config.scaling if config.scaling != row.scaling else None,
        seed=config.projection_prng_key % 2**32 if row.shares_basis else 0,  # torch's stream takes 32 bits of its seed
        d_init=config.d_initial,
        dropout=getattr(config, config.kind.dropout),
        rank_pattern=tuple((n, r) for n, r in peft.ranks.items() if r != rank),
        alpha_pattern=alphas,
        head=tuple(dict.fromkeys(head_of(peft.model, key) or key.partition(".")[0] for key in peft.heads)),
    )
    return replace(spec, targets=_targets(peft, spec))


def _alphas(peft: PeftFolder) -> tuple[float, Pattern]:
    config = peft.config
    alpha = config.required(config.kind.alpha or "")
    if config.kind.masked:  # PEFT's AdaLoRA has one alpha for all layers
        if alpha <= 0:
            raise SpecError(
                f"{config.kind.alpha}={alpha} cannot be imported: PEFT takes the rank of each layer instead"
            )
        return alpha, ()
    each = {n: of_pattern(config, "alpha_pattern", n, alpha) for n in peft.sites}
    return alpha, tuple((n, a) for n, a in each.items() if a != alpha)


def _targets(peft: PeftFolder, spec: AdapterSpec) -> str | tuple[str, ...]:
    """The config's own targets where they mean the same here, else the full name of every layer."""
    named = peft.config.target_modules
    targets = named if isinstance(named, str) else tuple(sorted(named))
    try:
        same = list(find_sites(peft.model, replace(spec, targets=targets))) == list(peft.sites)
    except (TargetError, SpecError):
        same = False
    return targets if same else tuple(peft.sites)


def _with_basis(
    peft: PeftFolder, stored: Mapping[str, Tensor] | None, dtype: str | torch.dtype | None
) -> tuple[AdapterSpec, Basis | None]:
    spec, config, shares = _spec(peft), peft.config, peft.config.row.shares_basis
    if dtype is not None and (stored or not shares):
        why = "the folder holds the basis itself" if stored else "this adapter has no shared basis"
        raise SpecError(f"basis_dtype={dtype} has no effect, for {why}; leave it out")
    if not shares:
        return spec, None
    if stored is not None:
        return recognized(spec, config, peft.sites, stored)
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    return redrawn(spec, config, peft.sites, peft.model, named), None


def _rounded(peft: PeftFolder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT rebuilds a layer that rank_pattern masks in its base's dtype, and rounds what it loads to that."""
    config, layers = peft.config, linear_layers(peft.model)
    masked = [n for n in peft.sites if config.kind.masked and _mask_key(config, n) in (config.rank_pattern or {})]
    low = {f"{n}.{letter}": getattr(torch, compute_dtype(layers[n])) for n in masked for letter in config.row.trained}
    return {key: t.to(low[key]) if key in low else t for key, t in tensors.items()}


def _check_files(path: Path) -> None:
    if not (path / CONFIG_NAME).is_file():
        inner = sorted(p.parent.name for p in path.glob(f"*/{CONFIG_NAME}")) if path.is_dir() else []
        named = f"; it holds the adapters {', '.join(inner)}, each a folder of its own" if inner else ""
        raise FormatError(f"{path.name} is not a PEFT folder: it has no {CONFIG_NAME}{named}")
    if not (path / WEIGHTS_NAME).is_file():
        if (path / PICKLE_NAME).is_file():
            raise FormatError(
                f"{PICKLE_NAME} is a pickle, which may run code and is never opened here; load it with PEFT "
                f"where you trust it and save_pretrained() it as {WEIGHTS_NAME}"
            )
        raise FormatError(f"{path.name} has no {WEIGHTS_NAME}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path.name} is not a whole safetensors file: {error}") from error
    with file as opened:
        yield opened


def _check_keys(peft: PeftFolder, file: Any) -> None:
    there, wanted = set(file.keys()), {w.stored for w in peft.wanted}
    wanted |= set(BASIS_KEYS.values()) if peft.stores_basis else set()
    if wanted - there:
        raise FormatError(
            f"{len(wanted - there)} of {len(wanted)} tensors are missing from {WEIGHTS_NAME}, among them "
            f"{min(wanted - there)!r}: the file is cut, or {CONFIG_NAME} is another adapter's"
        )
    unread = set(BASIS_KEYS.values()) if peft.config.row.shares_basis else set()
    for key in sorted(there - wanted - unread):
        _check_copy(peft.model, file, key)


def _check_copy(model: nn.Module, file: Any, key: str) -> None:
    """Raises FormatError for a tensor that isn't the base's own; PEFT saves an adapted output layer whole too."""
    own = dict(model.named_parameters(remove_duplicate=False)).get(
        key.removeprefix(PREFIX).replace(".base_layer.", ".")
    )
    if own is not None and own.is_meta:
        raise FormatError(
            f"{key!r} in {WEIGHTS_NAME} can't be compared with a base on the meta device; load its weights"
        )
    if own is None or not torch.equal(_read(file, key, tuple(own.shape)).to(own.dtype), own.detach().cpu()):
        raise FormatError(
            f"{WEIGHTS_NAME} holds {key!r}, which no layer adapted by {CONFIG_NAME} has; it would change the result "
            "and cannot be imported"
        )


def _read(file: Any, key: str, shape: Shape) -> Tensor:
    """One tensor in fp32, of exactly that shape, which is looked at before the tensor is read."""
    part = file.get_slice(key)
    found, dtype = tuple(part.get_shape()), part.get_dtype()
    if found != shape:
        raise LayoutError(f"{key} has shape {found}; the model and {CONFIG_NAME} want {shape}")
    if dtype not in FLOATS:
        raise FormatError(f"{key} is of dtype {dtype}, not one of {', '.join(FLOATS)}")
    tensor: Tensor = file.get_tensor(key).float()
    if not bool(torch.isfinite(tensor).all()):
        raise FormatError(f"{key} holds numbers that are not finite: the adapter is broken")
    return tensor


def _read_basis(peft: PeftFolder, file: Any, letter: str) -> Tensor:
    """A or B, at least as wide as the widest adapted layer and at most as the widest of the model."""
    key, side = BASIS_KEYS[letter], 0 if letter == "A" else 1
    found = tuple(file.get_slice(key).get_shape())
    rank = peft.config.required(peft.config.kind.rank)
    least = widest(peft.sites)[side]
    most = widest({n: widths(m) for n, m in linear_layers(peft.model).items()})[side]
    if len(found) != 2 or found[side] != rank or not least <= found[1 - side] <= most:
        raise LayoutError(f"{key} has shape {found}; rank {rank} and a width of {least} to {most} are wanted")
    return _read(file, key, found)
