"""folded: the LoRA that an adapter equals, of one rank and with every vector and scale inside A and B."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis
from polyvera.adapter.inject import with_base
from polyvera.adapter.layout import Site
from polyvera.errors import SpecError

Factors = dict[str, Tensor]


def folded(adapter: Adapter, *, magnitude: bool = False, model: nn.Module | None = None) -> dict[str, Factors]:
    """A (rank, in) and B (out, rank) of each layer by its name: B A is the change of its weight, with no scale.

    A stack of experts has one of each, (experts, rank, in) and (experts, out, rank).

    The rank is the largest of all layers, at least 1; a layer of fewer has rows of A and columns of B that are 0.
    magnitude: takes an adapter with a magnitude, whose m (out,) stays beside A and B. model: the bare base, which a
    basis that is computed from its weights needs. Raises SpecError for a magnitude unasked, BasisError without one.
    """
    if "m" in adapter.layout.method.factors and not magnitude:
        raise SpecError(
            f"{adapter.layout.method.name} trains a magnitude, which scales the base's own weight and cannot be folded "
            "into a LoRA: `polyvera merge` writes a plain model, and PEFT's own format (without --as-lora) keeps it"
        )
    adapter = with_base(adapter, model)
    basis, rank = adapter.basis(), folded_rank(adapter)
    return {site.name: _padded(plain(factors_of(adapter, site, basis), site), rank) for site in adapter.layout.sites}


def check_no_experts(adapter: Adapter, reader: str) -> None:
    """Raises SpecError for a stack of experts, which that reader has no form for."""
    stack = next((site.name for site in adapter.layout.sites if site.num_experts), None)
    if stack is not None:
        raise SpecError(f"{reader} hold no fused experts, and this one adapts {stack}: leave it out, or use `merge`")


def folded_rank(adapter: Adapter) -> int:
    """The rank that folded() gives every layer."""
    return max(1, adapter.layout.max_rank)


def factors_of(adapter: Adapter, site: Site, basis: Basis | None) -> Factors:
    """Every factor of an adapter in one layer by its letter: the trained, those cut from the basis, the layer's own."""
    own = {k: adapter.tensors[f"{site.name}.{k}"] for k in adapter.layout.method.trained}
    if basis is not None:
        return {**own, "A": basis.A[:, : site.in_features], "B": basis.B[: site.out_features]}
    return {**own, **adapter.frozen(site)}


def plain(factors: Factors, site: Site) -> Factors:
    """A' = C (d ⊙ A) and B' = s b ⊙ B of every factor in one layer, s its scale; m as it is."""
    A, B, C, d, b = (factors.get(k) for k in ("A", "B", "C", "d", "b"))
    assert A is not None and B is not None
    A = A if d is None else d[..., None] * A
    A = A if C is None else C @ A
    B = (B if b is None else b[..., None] * B) * (site.scale[0] / site.scale[1])
    stack = (site.num_experts,) if site.num_experts else ()
    pair = {"A": A.expand(*stack, *A.shape[-2:]), "B": B.expand(*stack, *B.shape[-2:])}
    return pair | {k: v for k, v in factors.items() if k == "m"}


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors["A"].shape[-2]
    return {**factors, "A": pad(factors["A"], (0, 0, 0, missing)), "B": pad(factors["B"], (0, missing))}
