"""One tiny model and its adapters for all tests; an engine gives the model back as it was."""

import gc
from collections.abc import Iterator

import pytest
import torch
from tiny_serve import Solo, make_adapter, make_llama, make_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def solo(llama: LlamaForCausalLM) -> Solo:
    return Solo(llama)


@pytest.fixture(scope="session")
def trained(llama: LlamaForCausalLM) -> list[Adapter]:
    """Every row of the table on all layers and on few, with a magnitude added; several bases and ranks."""
    specs = []
    for i, name in enumerate(METHODS):
        specs += [
            AdapterSpec(name, rank=4, targets="all-linear"),
            AdapterSpec(name, rank=3 + i, seed=5),
            AdapterSpec(name, rank=4, targets=("k_proj", "down_proj"), magnitude=True),
        ]
    return [make_adapter(llama, spec, seed) for seed, spec in enumerate(specs)]
