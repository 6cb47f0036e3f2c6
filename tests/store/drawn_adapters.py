"""Adapters with random numbers, of every method, on made-up layers: no model is needed to store one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import draw_basis, given_basis
from polyvera.adapter.layer_basis import frozen_factors
from polyvera.adapter.layout import Shape, layout_of
from polyvera.adapter.spec import AdapterSpec

Widths = Mapping[str, tuple[int, int]]
BASE = "0123456789abcdef-fedcba9876543210"
CREATED = "2025-11-21T22:00:00+00:00"
SCORES = {"loss": 1.25, "accuracy": 0.1 + 0.2}
SMALL: Widths = {
    **{f"layers.{i}.{name}": (8, out) for i in range(3) for name, out in (("q", 8), ("v", 6))},
    "out_proj": (6, 10),
}
SMOLLM2: Widths = {
    f"model.layers.{i}.self_attn.{name}": (576, out)
    for i in range(30)
    for name, out in (("q_proj", 576), ("v_proj", 192))
}


def drawn(
    method: str, widths: Widths = SMALL, head: Mapping[str, Shape] | None = None, seed: int = 0, **spec: Any
) -> Adapter:
    """An adapter of that method with numbers from N(0, 1)."""
    chosen = AdapterSpec(method=method, **{"rank": 4, "head": tuple({k.partition(".")[0] for k in head or {}}), **spec})
    layout = layout_of(chosen, widths, head)
    flat = torch.randn(layout.num_params, generator=torch.Generator().manual_seed(seed))
    sha256 = "" if layout.basis is None else draw_basis(layout.basis).sha256
    adapter = Adapter(chosen, layout, flat, sha256, None, BASE, SCORES, CREATED)
    return replace(adapter, computed=of_a_base(adapter)) if layout.method.reads_base else adapter


def of_a_base(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What bases that are computed from weights are, of a base with random ones."""
    numbers, found = torch.Generator().manual_seed(8), {}
    for site in adapter.layout.sites:
        layer = nn.Linear(site.in_features, site.out_features)
        layer.weight.data = torch.randn(layer.weight.shape, generator=numbers)
        found |= {f"{site.name}.{x}": t for x, t in frozen_factors(adapter.layout, site, layer).items()}
    return found


def with_given_basis(adapter: Adapter) -> Adapter:
    """The same numbers on a pair of matrices that no recipe draws."""
    key = adapter.layout.basis
    assert key is not None
    numbers = torch.Generator().manual_seed(7)
    A, B = torch.randn(key.rank, key.in_max, generator=numbers), torch.randn(key.out_max, key.rank, generator=numbers)
    basis = given_basis(A, B)
    return replace(adapter, layout=replace(adapter.layout, basis=basis.key), basis_sha256=basis.sha256, given=basis)


def with_value(adapter: Adapter, key: str, value: float) -> Adapter:
    """The same adapter with that value somewhere in one tensor."""
    entry, flat = adapter.layout.entries[key], adapter.flat.clone()
    flat[entry.offset + entry.size // 2] = value
    return replace(adapter, flat=flat)


def alike(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters are equal in every bit and every word."""
    same = one.layout.key() == other.layout.key() and one.layout.site_names == other.layout.site_names
    same = same and torch.equal(one.flat.view(torch.int32), other.flat.view(torch.int32))
    given = [None if a.given is None else a.given.sha256 for a in (one, other)]
    words = [(a.spec, a.basis_sha256, a.base, dict(a.scores), a.created) for a in (one, other)]
    return same and given[0] == given[1] and words[0] == words[1]
