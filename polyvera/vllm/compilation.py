"""Compilation: what vLLM is told so that it compiles the model with the plugin's layers, and keeps graphs apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from polyvera.vllm.settings import Settings


def configuring(old: Callable[[Any], None], settings: Settings) -> Callable[[Any], None]:
    """CpuPlatform.check_and_update_config: keeps torch.compile where no adapter has matrices of its own.

    vLLM's own LoRA for the CPU branches in Python on whether a batch holds prompts, which a graph would hold fast, so
    vLLM compiles nothing where LoRA is on. Vectors take one course always.
    """

    def check_and_update_config(config: Any) -> None:
        lora = config.lora_config
        config.lora_config = lora if settings.matrices else None
        try:
            old(config)
        finally:
            config.lora_config = lora

    return check_and_update_config


def hashing(old: Callable[..., str], settings: Settings) -> Callable[..., str]:
    """VllmConfig.compute_hash, which names a compiled graph on disk: what a layer holds is a part of it."""
    course = repr((settings.rank, settings.vectors, settings.gain, settings.matrices))

    def compute_hash(config: Any, *args: Any, **named: Any) -> str:
        whole = f"{old(config, *args, **named)} polyvera {course}"
        return hashlib.sha256(whole.encode()).hexdigest()[:10]

    return compute_hash


def silence(punica: Any) -> None:
    """Makes vLLM's own LoRA operations add nothing: for an engine without matrices, whose tables hold zeros alone."""
    for name in ("add_shrink", "add_expand", "add_lora_embedding", "add_lora_linear", "add_lora_logits"):
        setattr(punica, name, _unchanged)


def _unchanged(y: Any, *_: Any, **__: Any) -> Any:
    return y
