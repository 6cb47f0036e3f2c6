"""register(), which vLLM calls in each of its processes at start: some places of its LoRA machinery are widened."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.errors import SpecError
from polyvera.model.shapes import meta_model
from polyvera.vllm.compilation import configuring, hashing, silence
from polyvera.vllm.settings import KINDS, Settings, check_version, installed_version

MARK = "_polyvera"


def register() -> None:
    """The entry point `vllm.general_plugins`. Raises SpecError for settings or a vLLM that cannot be."""
    settings = Settings.read(os.environ)
    if not (settings.vectors or settings.matrices):
        return
    check_version(installed_version())
    from vllm.config import VllmConfig
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.resolver import LoRAResolverRegistry
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _replace(current_platform, "check_and_update_config", lambda old: configuring(old, settings))
    _replace(VllmConfig, "compute_hash", lambda old: hashing(old, settings))
    _replace(LoRAModelManager, "_create_lora_modules", lambda old: _creating(old, settings))
    _replace(WorkerLoRAManager, "_load_adapter", lambda old: _loading(old, settings))
    _guard_base_rows()
    if settings.store:
        from polyvera.vllm.resolver import StoreResolver

        LoRAResolverRegistry.register_resolver("polyvera", StoreResolver(settings.store))


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Puts wrap(old) in the place of a function, once."""
    old = getattr(owner, name, None)
    if old is None:
        whose = getattr(owner, "__name__", owner)
        raise SpecError(f"this vLLM has no {whose}.{name}, which the plugin widens: install a tested release")
    if not hasattr(old, MARK):
        new = wraps(old)(wrap(old))
        setattr(new, MARK, True)
        setattr(owner, name, new)


def _creating(old: Callable[[Any], None], settings: Settings) -> Callable[[Any], None]:
    def create(manager: Any) -> None:
        config = manager.lora_config
        _check_config(config)
        asked = config.max_lora_rank
        config.max_lora_rank = asked if settings.matrices else 1  # else gigabytes of zeros would come and go
        try:
            old(manager)
        finally:
            config.max_lora_rank = asked
        _add_slots(manager, settings)

    return create


def _check_config(config: Any) -> None:
    from vllm import envs

    if config.fully_sharded_loras:
        raise SpecError("fully_sharded_loras is not served with this plugin: vectors need no sharding; leave it out")
    if envs.VLLM_LORA_ENABLE_DUAL_STREAM:
        raise SpecError("VLLM_LORA_ENABLE_DUAL_STREAM=1 goes past this plugin: leave it unset")


def _add_slots(manager: Any, settings: Settings) -> None:
    """Gives every linear layer that vLLM adapts its slots, and notes which site is where."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    from polyvera.vllm.packed import multiply
    from polyvera.vllm.pair import SharedPair

    config, device = manager.lora_config, torch.device(manager.device)
    manager.polyvera_pair = SharedPair(settings.rank, config.lora_dtype, device, multiply=multiply)
    manager.polyvera_sites = {}
    for name, layer in manager.modules.items():
        if not settings.matrices:
            silence(layer.punica_wrapper)
        if isinstance(layer, BaseLinearLayerWithLoRA):
            _widen(manager, name, layer, settings)


def _widen(manager: Any, name: str, layer: Any, settings: Settings) -> None:
    from polyvera.vllm.layers import add_slots, num_members, only_vectors

    names = manager.packed_modules.get(name, [name])
    if len(names) != num_members(layer):
        return  # a model's own packing: its sites are refused by name when an adapter asks for them
    served = [settings.vectors and manager._match_target_modules(site) for site in names]
    gain = settings.gain and settings.vectors
    add_slots(layer, names, served, manager.polyvera_pair, manager.lora_slots, gain=gain)
    layer.has_matrices = settings.matrices
    if not settings.matrices:
        only_vectors(layer, manager.lora_config.max_lora_rank)
    layer.token_lines = _lines_of(layer.punica_wrapper)
    reached = served if settings.vectors else [True] * len(names)
    manager.polyvera_sites.update({site: (name, i) for i, site in enumerate(names) if reached[i]})


def _lines_of(punica: Any) -> Any:
    """Every token's line in the layers' tables: one tensor for all, written when vLLM writes which slots it runs."""
    from polyvera.vllm.slots import BASE

    if not hasattr(punica, "polyvera_lines"):
        slots, old = punica._token_lora_indices.fill_(BASE), punica._update_base_metadata
        punica.polyvera_lines = slots - BASE

        def update(*args: Any, **kwargs: Any) -> None:
            old(*args, **kwargs)
            torch.sub(slots, BASE, out=punica.polyvera_lines)

        punica._update_base_metadata = update
    return punica.polyvera_lines


def _loading(old: Callable[[Any, Any], Any], settings: Settings) -> Callable[[Any, Any], Any]:
    def load(worker: Any, request: Any) -> Any:
        from vllm.lora.utils import get_adapter_absolute_path

        from polyvera.vllm.loading import lora_model
        from polyvera.vllm.source import SCHEME, read_adapter

        path = request.lora_path
        path = path if path.startswith(SCHEME) else get_adapter_absolute_path(path)
        adapter = read_adapter(path, settings.store, lambda: _skeleton(worker))
        if adapter is not None:
            return lora_model(adapter, worker._adapter_manager, request.lora_int_id, settings)
        if not settings.matrices:
            raise SpecError(f"{path} is no adapter that this engine serves: {KINDS} leaves out those with matrices")
        return old(worker, request)

    return load


def _skeleton(worker: Any) -> nn.Module:
    """The base as transformers has it, without weights, to read a folder of PEFT's against."""
    return meta_model(worker._adapter_manager.model.config).to(worker.lora_config.lora_dtype)


def _guard_base_rows() -> None:
    """vLLM's LoRA for the CPU takes index -1, no adapter, for the last slot; here such a token gets exactly nothing.

    Seen with vLLM 0.32.0; reported as vllm-project/vllm#48421.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in ("bgmv_expand", "bgmv_expand_slice"):
        _replace(lora_ops, name, _guarded)
        setattr(punica_cpu, name, getattr(lora_ops, name))


def _guarded(old: Callable[..., None]) -> Callable[..., None]:
    def expand(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, *rest: Any, **named: Any) -> None:
        has_adapter = (indices >= 0).to(inputs.dtype)[:, None]
        old(inputs[: len(indices)] * has_adapter, weights, output, indices, *rest, **named)

    return expand
