"""import_peft: a folder that Hugging Face PEFT wrote becomes an Adapter with the same logits, bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.base_layer import widths
from polyvera.adapter.basis import Basis
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.layout import Shape
from polyvera.adapter.method import factor_shape
from polyvera.adapter.spec import AdapterSpec, Pattern
from polyvera.adapter.targets import base_layers, find_sites, head_of
from polyvera.errors import FormatError, LayoutError, SpecError, TargetError
from polyvera.store.foreign import CONFIG_NAME, diagnosis, foreign
from polyvera.store.peft.basis import check_digest, recognized, redrawn
from polyvera.store.peft.config import (
    BASIS_KEYS,
    MERGE,
    PICKLE_NAME,
    PREFIX,
    WEIGHTS_NAME,
    PeftConfig,
    read_config,
    stored_shape,
)
from polyvera.store.peft.expert_parameters import kept_shape, unkept, wrapped_name
from polyvera.store.peft.origin import labels_from, origin_of, task_from
from polyvera.store.peft.sites import Sites, compute_dtype, heads_of, of_pattern, sites_of, widest
from polyvera.store.peft.tensor_names import REPLACED, backbone_prefix, found_names, own_name
from polyvera.store.tensor_file import FileTensor, open_tensors, unpickled_tensors

T = TypeVar("T")
Stored = Mapping[str, FileTensor]
WANTED_BY = f"the model and {CONFIG_NAME}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor that must be in the file: its name and shape there, and its key and shape in the adapter.

    stacked: the letter of a factor of a stack of experts.
    """

    stored: str
    stored_shape: Shape
    key: str
    shape: Shape
    stacked: str = ""

    def read(self, file: FileTensor) -> Tensor:
        """The tensor as the adapter has it. Raises LayoutError as FileTensor.floats()."""
        value = file.floats(self.stored, self.stored_shape, WANTED_BY)
        return unkept(self.stacked, value, self.shape) if self.stacked else value.reshape(self.shape)


@dataclass(frozen=True)
class PeftFolder:
    """One folder's config against one base model: the layers it adapts, their ranks, and what it saves whole.

    prefix: what the folder's names leave out where they are of the bare backbone.
    """

    config: PeftConfig
    model: nn.Module
    sites: Sites
    ranks: Mapping[str, int]
    heads: Mapping[str, Shape]
    prefix: str = ""

    @property
    def wanted(self) -> list[Wanted]:
        """Every trained tensor."""
        found = [Wanted(PREFIX + self.bare(key), shape, key, shape) for key, shape in self.heads.items()]
        row, kind = self.config.row, self.config.kind
        for site, wide in self.sites.items():
            for letter in row.trained:
                shape = factor_shape(letter, self.ranks[site], *wide)
                is_stack = len(wide) > 2
                place = wrapped_name(site, self.sites) if is_stack else site
                kept = kept_shape(letter, shape) if is_stack else stored_shape(kind, letter, shape)
                name = f"{PREFIX}{self.bare(place)}.{row.peft_keys[letter]}"
                found.append(Wanted(name, kept, f"{site}.{letter}", shape, letter if is_stack else ""))
        return found

    def bare(self, name: str) -> str:
        """A layer's name as the folder has it."""
        return name.removeprefix(self.prefix)

    @cached_property
    def own_tensors(self) -> Mapping[str, Tensor]:
        """The base's own tensors by name."""
        return {**dict(self.model.named_buffers()), **dict(self.model.named_parameters(remove_duplicate=False))}

    @property
    def stores_basis(self) -> bool:
        """Whether A and B come in the file."""
        return self.config.row.shares_basis and self.config.save_projection


def import_peft(
    folder: str | Path, model: nn.Module, *, basis_dtype: str | torch.dtype | None = None, pickle: bool = False
) -> Adapter:
    """A PEFT folder (VeRA, LoRA, rsLoRA, DoRA or AdaLoRA) as an Adapter whose logits equal PEFT's own, bit for bit.

    model: the base, which may be on the meta device. basis_dtype: what a VeRA basis that isn't in the file was rounded
    to in training, which is the dtype of the base's adapted weights unless said otherwise. pickle: also reads
    adapter_model.bin, by torch.load(weights_only=True). Like PEFT, it rounds the layers that AdaLoRA has pruned to a
    low-precision base's dtype. Raises FormatError for files that are broken or hold more than an adapter can, SpecError
    for a choice that cannot be imported, LayoutError where the model doesn't fit, BasisError where the basis isn't the
    one of training.
    """
    path = Path(folder)
    check_folder(path, pickle=pickle)
    config = read_config(path / CONFIG_NAME, model).on(model)
    with opened_weights(path) as file:
        peft = _folder(config, model, backbone_prefix(file, model))
        names = _checked_names(peft, file)
        tensors = {w.key: w.read(file[names[w.stored]]) for w in peft.wanted}
        stored = (
            {k: _read_basis(peft, file[names[key]], k) for k, key in BASIS_KEYS.items()} if peft.stores_basis else None
        )
    spec, basis = _with_basis(peft, stored, basis_dtype)
    base = "" if any(p.is_meta for p in model.parameters()) else fingerprint(model)
    adapter = adapter_from(spec, peft.sites, _rounded(peft, tensors), basis, base)
    if stored is None:
        check_digest(peft.config, adapter.basis_sha256)
    own = peft.config.polyvera
    return replace(
        adapter,
        model=own.model or peft.config.base_model_name_or_path or "",
        labels=labels_from(peft.config, model, adapter.layout),
        origin=origin_of(peft.config, model, peft.prefix),
        scores=own.scores,
        created=own.created,
        lr=own.lr,
        prompt_form=own.prompt_form,
        task=task_from(peft.config, model, adapter.layout),
        threshold=own.threshold,
    )


def _folder(config: PeftConfig, model: nn.Module, prefix: str) -> PeftFolder:
    named = model.get_submodule(prefix.rstrip("."))
    sites = sites_of(config, named)
    ranks = {name: _rank(config, name) for name in sites}
    heads = heads_of(config, model) if not prefix else {}
    return PeftFolder(config, model, _under(prefix, sites), _under(prefix, ranks), heads, prefix)


def _under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    return {prefix + name: value for name, value in named.items()}


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
    each = {n: of_pattern(config, "alpha_pattern", peft.bare(n), alpha) for n in peft.sites}
    return alpha, tuple((n, a) for n, a in each.items() if a != alpha)


def _targets(peft: PeftFolder, spec: AdapterSpec) -> str | tuple[str, ...]:
    """The config's own targets where they mean the same here, else the full name of every layer."""
    named = peft.config.target_modules or ()
    parameters = tuple(sorted(peft.config.target_parameters or ()))
    targets = named if isinstance(named, str) and not parameters else (*_listed(named), *parameters)
    try:
        same = list(find_sites(peft.model, replace(spec, targets=targets))) == list(peft.sites)
    except (TargetError, SpecError):
        same = False
    return targets if same else tuple(peft.sites)


def _listed(targets: Collection[str] | str) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else tuple(sorted(targets))


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
    config, layers = peft.config, base_layers(peft.model)
    masks = config.rank_pattern or {}
    masked = [n for n in peft.sites if config.kind.masked and _mask_key(config, peft.bare(n)) in masks]
    low = {f"{n}.{letter}": getattr(torch, compute_dtype(layers[n])) for n in masked for letter in config.row.trained}
    return {key: t.to(low[key]) if key in low else t for key, t in tensors.items()}


def check_folder(path: Path, *, pickle: bool = False) -> None:
    """Raises FormatError, with what it is instead, for what is not a PEFT folder."""
    weights = [path / WEIGHTS_NAME, *([path / PICKLE_NAME] if pickle else [])]
    if not (path / CONFIG_NAME).is_file() or (not any(w.is_file() for w in weights) and foreign(path) is not None):
        raise FormatError(diagnosis(path, "a PEFT folder"))
    if any(w.is_file() for w in weights):
        return
    if (path / PICKLE_NAME).is_file():
        raise FormatError(
            f"{PICKLE_NAME} is a pickle, which may hold anything: --pickle (pickle=True) reads it as plain tensors, by "
            "torch.load(weights_only=True), which runs no code"
        )
    raise FormatError(
        f"{path.name} has no {WEIGHTS_NAME}; it holds {', '.join(sorted(p.name for p in path.iterdir()))}"
    )


@contextmanager
def opened_weights(path: Path) -> Iterator[Stored]:
    """The tensors of a folder that check_folder() passed."""
    if (path / WEIGHTS_NAME).is_file():
        with open_tensors(path / WEIGHTS_NAME) as file:
            yield file
    else:
        yield unpickled_tensors(path / PICKLE_NAME)


def _checked_names(peft: PeftFolder, file: Stored) -> Mapping[str, str]:
    """The name in the file of every tensor that is wanted, where what else it holds changes nothing."""
    wanted = {w.stored for w in peft.wanted} | (set(BASIS_KEYS.values()) if peft.stores_basis else set())
    names = found_names(wanted, file, peft.model)
    unread = set(BASIS_KEYS.values()) if peft.config.row.shares_basis else set()
    for key in sorted(set(file) - set(names.values()) - unread):
        if f".{REPLACED}." not in key and not (unread and key.endswith(_ALIASES)):
            _check_copy(peft, file[key], key)
    return names


# A raw state dict names the shared pair once more in every layer.
_ALIASES = tuple(f".{key.rpartition('.')[2]}{end}" for key in BASIS_KEYS.values() for end in ("", ".default"))


def _check_copy(peft: PeftFolder, stored: FileTensor, key: str) -> None:
    """Raises FormatError for a tensor that isn't the base's own; PEFT saves an adapted output layer whole too."""
    own = peft.own_tensors.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
    own = peft.own_tensors.get(own_name(key)) if own is None else own
    if own is not None and own.is_meta:
        raise FormatError(f"{key!r} can't be compared with a base on the meta device; load its weights")
    if own is None or not _equals(stored, key, own):
        why = "which no layer adapted by the config has; it would change the result and cannot be imported"
        if key.endswith(".bias") and peft.config.bias not in (None, "none"):
            why = f"and bias={peft.config.bias!r} trains biases of the base model, which no adapter here holds"
        elif peft.config.modules_to_save and own is not None:
            why = (
                f"which modules_to_save={peft.config.modules_to_save!r} saves whole and which differs from the base's; "
                f"only a module directly under {type(peft.model).__name__} can be a head"
            )
        raise FormatError(f"the file holds {key!r}, {why}; {MERGE}")


def _equals(stored: FileTensor, key: str, own: Tensor) -> bool:
    return torch.equal(stored.floats(key, tuple(own.shape), "the base's own").to(own.dtype), own.detach().cpu())


def _read_basis(peft: PeftFolder, stored: FileTensor, letter: str) -> Tensor:
    """A or B, at least as wide as the widest adapted layer and at most as the widest of the model."""
    key, side = BASIS_KEYS[letter], 0 if letter == "A" else 1
    rank = peft.config.required(peft.config.kind.rank)
    least = widest(peft.sites)[side]
    most = widest({n: widths(m) for n, m in base_layers(peft.model).items()})[side]
    found = stored.shape
    if len(found) != 2 or found[side] != rank or not least <= found[1 - side] <= most:
        raise LayoutError(f"{key} has shape {found}; rank {rank} and a width of {least} to {most} are wanted")
    return stored.floats(key, found, WANTED_BY)
