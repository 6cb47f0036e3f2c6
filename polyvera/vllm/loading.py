"""An Adapter as vLLM's LoRAModel: vectors or matrices by the names of vLLM's layers, checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.model_executor.models.utils import PPMissingLayer

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis
from polyvera.adapter.folded import factors_of, plain
from polyvera.adapter.layout import Site
from polyvera.errors import LayoutError, SpecError, did_you_mean
from polyvera.vllm.settings import KINDS, Settings, as_matrices, as_vectors
from polyvera.vllm.slots import SiteVectors


@dataclass
class LayerVectors:
    """What vLLM keeps for one layer: lora_a is the vectors of each member, None where there are none."""

    lora_a: list[SiteVectors | None]
    lora_b: list[None] = field(default_factory=list)

    def optimize(self) -> LayerVectors:
        """Itself: there is no scale to fold in."""
        return self


def lora_model(adapter: Adapter, manager: Any, number: int, settings: Settings) -> LoRAModel:
    """An adapter for one vLLM model. Raises LayoutError, SpecError, or BasisError where another pair is in use."""
    adapter.check_whole()
    layout = adapter.layout
    if layout.head:
        raise LayoutError(f"the adapter holds a head ({layout.head[0][0]}), which vLLM cannot swap for each request")
    _check_served(adapter, settings)
    sites = {site.name: _renamed(manager.model, site.name) for site in layout.sites}
    here = [s for s in layout.sites if not _is_elsewhere(manager.model, sites[s.name])]
    for site in here:
        _check_site(site, sites[site.name], manager)
    ranks = layout.max_rank
    basis = adapter.basis()
    if not as_vectors(layout.method):
        _check_rank(ranks, manager.lora_config.max_lora_rank)
        return LoRAModel(number, ranks, {sites[s.name]: _matrices(adapter, s, basis, manager) for s in here})
    assert basis is not None
    manager.polyvera_pair.bind(basis)
    return LoRAModel(number, ranks, _vectors(adapter, here, sites, manager))


def _check_served(adapter: Adapter, settings: Settings) -> None:
    row = adapter.layout.method
    served = settings.vectors if as_vectors(row) else settings.matrices and as_matrices(row)
    if not served or (as_vectors(row) and "m" in row.factors and not settings.gain):
        raise SpecError(
            f"this engine does not serve {row.name} adapters: vLLM's matrices take no magnitude, and {KINDS} chooses "
            "among the rest when the engine starts"
        )
    if row.reads_base:
        raise SpecError(
            f"the basis of this {row.name} adapter is computed from the base's weights, which vLLM keeps in a form of "
            "its own: `polyvera export --as-lora`, and serve the LoRA"
        )


def _vectors(adapter: Adapter, sites: list[Site], names: Mapping[str, str], manager: Any) -> dict[str, LayerVectors]:
    tensors = adapter.tensors
    loras: dict[str, LayerVectors] = {}
    for site in sites:
        layer, at = manager.polyvera_sites[names[site.name]]
        loras.setdefault(layer, LayerVectors([None] * len(manager.modules[layer].slots.members)))
        absent = {"d": torch.ones(site.rank), "b": torch.ones(site.out_features), "m": None}
        own = {letter: tensors.get(f"{site.name}.{letter}", none) for letter, none in absent.items()}
        loras[layer].lora_a[at] = SiteVectors(**own)  # type: ignore[arg-type]
    return loras


def _matrices(adapter: Adapter, site: Site, basis: Basis | None, manager: Any) -> LoRALayerWeights:
    f, dtype = plain(factors_of(adapter, site, basis), site), manager.lora_config.lora_dtype
    return LoRALayerWeights(site.name, site.rank, site.rank, f["A"].to(dtype), f["B"].to(dtype), 1)


def _check_rank(rank: int, most: int) -> None:
    if rank > most:
        raise LayoutError(f"the adapter has rank {rank} and this engine takes up to {most}: raise --max-lora-rank")


def _check_site(site: Site, name: str, manager: Any) -> None:
    known = manager.polyvera_sites
    if name not in known:
        raise LayoutError(
            f"the adapter is for the layer {name}, which this engine adapts no part of (does --lora-target-modules "
            f"leave it out?){did_you_mean(name, known)}"
        )
    layer, at = known[name]
    module = manager.modules[layer]
    here = module.base_layer.input_size, module.slots.members[at].out_features
    if here != (site.in_features, site.out_features):
        raise LayoutError(
            f"{name} is {here} (in, out) wide here, and {(site.in_features, site.out_features)} in the adapter"
        )


def _renamed(model: Any, name: str) -> str:
    """A layer's name in transformers as vLLM's model has it."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    found = None if mapper is None else mapper.get_rename_mapper()._map_name(name)
    return name if found is None else str(found)


def _is_elsewhere(model: torch.nn.Module, name: str) -> bool:
    """Whether a layer is computed by another pipeline stage."""
    for part in name.split("."):
        model = getattr(model, part, model)
        if isinstance(model, PPMissingLayer):
            return True
    return False
