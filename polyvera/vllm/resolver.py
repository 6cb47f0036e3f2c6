"""StoreResolver: `model="acme@3"` in a request finds the adapter in a polyvera store."""

from __future__ import annotations

import asyncio

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from polyvera.errors import NotFoundError, ReferenceNameError
from polyvera.store.registry import Registry
from polyvera.vllm.source import SCHEME


class StoreResolver(LoRAResolver):
    """Names as the registry has them: `name` (the latest version), `name@3`, `name@alias`.

    vLLM asks once for each name and keeps the answer until the name is unloaded.
    """

    def __init__(self, store: str) -> None:
        self.registry = Registry(store)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The request that loads that version, or None, which vLLM answers with 404."""
        try:
            ref = await asyncio.to_thread(self.registry.resolve, lora_name)
        except (ReferenceNameError, NotFoundError):
            return None
        # vLLM gives the number itself; the path names the version, and vLLM's prefix cache goes by name and path.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=f"{SCHEME}{ref}")
