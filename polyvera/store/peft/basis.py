"""Which basis a PEFT folder means: the key that draws it, or the pair itself where none does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from polyvera.adapter.basis import Basis, digest, draw_basis, given_basis
from polyvera.adapter.spec import DTYPES, GIVEN, AdapterSpec, BasisKey
from polyvera.adapter.targets import base_layers
from polyvera.errors import BasisError, LayoutError, SpecError
from polyvera.store.peft.config import PeftConfig
from polyvera.store.peft.sites import Sites, compute_dtype, widest

PEFT_INIT = "kaiming_uniform"  # the draw of PEFT's VeRA
FULL, *_ = DTYPES
MAX_DRAWN = 2**28  # numbers of a basis that a small file may ask for


def redrawn(spec: AdapterSpec, config: PeftConfig, sites: Sites, model: nn.Module, dtype: str | None) -> AdapterSpec:
    """The spec of a basis that isn't in the file: PEFT's draw for these layers, rounded to the dtype of training.

    dtype: None takes the recorded one, else that of the base's adapted weights. Raises SpecError, LayoutError.
    """
    in_max, out_max = widest(sites)
    rank = spec.rank or 0
    if rank * (in_max + out_max) > MAX_DRAWN:
        raise LayoutError(f"a basis of rank {rank} for {in_max} in, {out_max} out has more than {MAX_DRAWN:,} numbers")
    return replace(spec, basis_dtype=dtype or config.basis_dtype or _base_dtype(sites, model))


def recognized(
    spec: AdapterSpec, config: PeftConfig, sites: Sites, stored: Mapping[str, Tensor]
) -> tuple[AdapterSpec, Basis | None]:
    """The spec that names the stored A and B, and the pair itself where no key draws it. Raises BasisError."""
    A, B = stored["A"], stored["B"]
    for key in _candidates(config, spec.seed, A, B):
        if _is_slice(A, B, key):
            named = replace(spec, init=key.init, basis_dtype=key.dtype)
            own = (key.in_max, key.out_max) == widest(sites)
            return named if own else replace(named, in_max=key.in_max, out_max=key.out_max), None
    if (A.shape[1], B.shape[0]) == (config.in_max, config.out_max):
        check_digest(config, digest(A, B))
    return replace(spec, init=GIVEN), given_basis(A, B)


def check_digest(config: PeftConfig, sha256: str) -> None:
    """Raises BasisError where the folder records another basis."""
    if config.basis_sha256 and config.basis_sha256 != sha256:
        raise BasisError(
            f"the basis has sha256 {sha256[:12]} here, but the adapter was exported with {config.basis_sha256[:12]}; "
            "it is not applied"
        )


def _candidates(config: PeftConfig, seed: int, A: Tensor, B: Tensor) -> Iterator[BasisKey]:
    """The keys that may have drawn A and B: the recorded one, then PEFT's in each rounding."""
    rank, in_max, out_max = A.shape[0], config.in_max or 0, config.out_max or 0
    covers = in_max >= A.shape[1] and out_max >= B.shape[0] and rank * (in_max + out_max) <= MAX_DRAWN
    if covers and config.basis_init not in (None, GIVEN):
        yield BasisKey(config.basis_init or "", seed, rank, in_max, out_max, config.basis_dtype or FULL)
    for dtype in DTYPES:
        yield BasisKey(PEFT_INIT, seed, rank, A.shape[1], B.shape[0], dtype)


def _is_slice(A: Tensor, B: Tensor, key: BasisKey) -> bool:
    drawn = draw_basis(replace(key, dtype=FULL))  # one draw for all roundings
    pairs = ((A, drawn.A[:, : A.shape[1]]), (B, drawn.B[: B.shape[0]]))
    return all(torch.equal(x, y.to(getattr(torch, key.dtype)).float()) for x, y in pairs)


def _base_dtype(sites: Sites, model: nn.Module) -> str:
    """What PEFT rounds its draw to on this base."""
    layers = base_layers(model)
    low = sorted({compute_dtype(layers[n]) for n in sites} - {FULL})
    if len(low) > 1:
        raise SpecError(f"the base's adapted weights are {' and '.join(low)}, and PEFT records none: say basis_dtype")
    return low[0] if low else FULL
