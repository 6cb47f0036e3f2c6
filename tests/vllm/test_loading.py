"""What an engine does not serve is refused before vLLM's layers are asked."""

from dataclasses import replace

import pytest
import torch
from strong_adapters import draw
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SpecError
from polyvera.vllm.settings import Settings, as_matrices, as_vectors

pytest.importorskip("vllm.lora.lora_model", reason="vLLM has an environment of its own: scripts/test-vllm")
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ALL = Settings(store="", rank=8, vectors=True, gain=True, matrices=True)


def adapter_of(method):
    return draw(LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=8)), AdapterSpec(method, rank=2), 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_was_not_chosen_is_refused(method):
    from polyvera.vllm.loading import _check_served, lora_model

    row, adapter = METHODS[method], adapter_of(method)
    without = replace(ALL, vectors=not as_vectors(row), matrices=not as_matrices(row))
    with pytest.raises(SpecError, match=method):
        lora_model(adapter, None, 1, without)
    if row.reads_base:
        with pytest.raises(SpecError, match="--as-lora"):
            _check_served(adapter, ALL)
    elif as_vectors(row) or as_matrices(row):
        _check_served(adapter, ALL)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if as_vectors(row) and "m" in row.factors])
def test_a_magnitude_needs_a_gain(method):
    from polyvera.vllm.loading import lora_model

    with pytest.raises(SpecError, match=method):
        lora_model(adapter_of(method), None, 1, replace(ALL, gain=False))


def test_a_head_is_refused():
    from polyvera.vllm.loading import lora_model

    adapter = adapter_of(next(iter(METHODS)))
    layout = replace(adapter.layout, head=(("score.weight", (2, 16)),))
    spec = replace(adapter.spec, head=("score",))
    headed = replace(adapter, spec=spec, layout=layout, flat=torch.zeros(layout.num_params))
    with pytest.raises(LayoutError, match="head"):
        lora_model(headed, None, 1, ALL)


def test_layers_of_another_stage_are_known():
    from vllm.model_executor.models.utils import PPMissingLayer

    from polyvera.vllm.loading import LayerVectors, _is_elsewhere

    model = nn.ModuleDict({"here": nn.ModuleDict({"q": nn.Linear(2, 2)}), "there": PPMissingLayer()})
    assert not _is_elsewhere(model, "here.q") and _is_elsewhere(model, "there.q")
    kept = LayerVectors([None])
    assert kept.optimize() is kept
