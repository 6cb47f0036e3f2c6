"""Small real models with random weights, alike in every test."""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from polyvera.adapter.bank import Bank
from polyvera.model.load import Base


def llama() -> nn.Module:
    """Grouped queries: k and v are half as wide as q."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            attention_bias=True,
        )
    )


def gpt2() -> nn.Module:
    """Conv1D layers, q, k and v in one."""
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64))


def bert() -> nn.Module:
    """An encoder with a classification head."""
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, num_labels=3
    )
    return BertForSequenceClassification(config)


BUILDERS = {"llama": llama, "gpt2": gpt2, "bert": bert}


@pytest.fixture(scope="session")
def built() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    models = {name: build().eval() for name, build in BUILDERS.items()}
    for model in models.values():  # zero biases and unit norms would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return models


@pytest.fixture(params=list(BUILDERS))
def model(request: pytest.FixtureRequest, built: dict[str, nn.Module]) -> nn.Module:
    return copy.deepcopy(built[request.param])


@pytest.fixture
def small_llama(built: dict[str, nn.Module]) -> nn.Module:
    return copy.deepcopy(built["llama"])


@pytest.fixture
def small_bert(built: dict[str, nn.Module]) -> nn.Module:
    return copy.deepcopy(built["bert"])


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(5))


def scramble(bank: Bank, seed: int = 1, size: float = 0.1) -> None:
    """Moves every trained number of every slot, so that each adapter does something of its own."""
    noise = size * torch.randn(bank.flat.shape, generator=torch.Generator().manual_seed(seed))
    for index, slot in enumerate(bank.slots):
        bank._write(index, bank.take(slot) + noise[index])


@pytest.fixture(name="scramble")
def scramble_fixture():
    return scramble


@pytest.fixture
def base() -> Base:
    return Base(make_model(), make_tokenizer())


@pytest.fixture
def classifier() -> Base:
    return Base(make_classifier(), make_tokenizer())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows to a file; returns its path."""

    def write(rows: Rows, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def counting(jsonl: Callable[..., str]) -> str:
    return jsonl(counting_rows(24), "counting.jsonl")


@pytest.fixture
def classes(jsonl: Callable[..., str]) -> str:
    rows = [{"text": f"w{i % 7} w{20 + i % 5}", "label": ("even", "odd")[i % 2]} for i in range(24)]
    return jsonl(rows, "classes.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tenants of unequal size, each with rows of its own."""
    place = tmp_path / "tenants"
    place.mkdir()
    for k in range(5):
        rows = counting_rows(9 + 3 * k)
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[k:] + rows[:k]))
    return place
