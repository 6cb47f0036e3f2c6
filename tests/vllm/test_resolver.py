"""Names in a request lead to versions of a store, as the registry reads them."""

import asyncio

import pytest
from strong_adapters import draw
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.registry import Registry

pytest.importorskip("vllm.lora.resolver", reason="vLLM has an environment of its own: scripts/test-vllm")


@pytest.fixture
def store(tmp_path):
    """acme/one in two versions, the first of them prod."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    adapter = draw(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=8)), AdapterSpec(rank=2), 0)
    registry = Registry(tmp_path)
    registry.put("acme/one", adapter, alias="prod")
    registry.put("acme/one", adapter)
    return registry


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("acme/one", "polyvera://acme/one@2"),
        ("acme/one@1", "polyvera://acme/one@1"),
        ("acme/one@prod", "polyvera://acme/one@1"),
        ("acme/one@3", None),
        ("acme/two", None),
        ("../acme", None),
        ("", None),
    ],
)
def test_a_name_is_a_version_or_nothing(store, name, path):
    from polyvera.vllm.resolver import StoreResolver

    found = asyncio.run(StoreResolver(store.url).resolve_lora("base", name))
    assert (found and (found.lora_name, found.lora_path)) == (path and (name, path))


def test_a_name_published_later_is_found(store):
    from polyvera.vllm.resolver import StoreResolver

    resolver = StoreResolver(store.url)
    assert asyncio.run(resolver.resolve_lora("base", "late")) is None
    store.put("late", store.get("acme/one"))
    assert asyncio.run(resolver.resolve_lora("base", "late")).lora_path == "polyvera://late@1"
