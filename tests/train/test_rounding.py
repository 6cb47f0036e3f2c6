"""rounding: what is scored is what is stored, and what rounding did to the loss is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.inject import inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.tables import read
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.load import Base
from polyvera.store.file.codec import decode, encode
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.store.load import load
from polyvera.store.registry import Registry
from polyvera.train.budget import compacted
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import rounded, rounds, without_pruned
from polyvera.train.trainer import TrainResult, train

LOSSY = [name for name, row in STORED_DTYPES.items() if not row.is_exact]
TRIPLETS = next(name for name, row in METHODS.items() if {"A", "B", "d"} <= set(row.trained))


def trained(data: str, store: Path, **choices: object) -> TrainResult:
    settings = {"model": "tiny", "data": data, "rank": 4, "batch_size": 4, "max_steps": 6, "lr": 0.05, "name": "x"}
    base = Base(make_model(), make_tokenizer())
    return train(Recipe(**settings, store=str(store), **choices), base=base, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", LOSSY)
def test_the_scores_are_those_of_the_stored_numbers(counting: str, tmp_path: Path, dtype: str) -> None:
    result = trained(counting, tmp_path, stored=dtype, test=counting, validation=0.25)
    found = Registry(tmp_path).get("x")
    assert result.adapter is not None and torch.equal(result.adapter.flat, found.flat)
    assert result.scores == result.adapter.scores == found.scores
    base = Base(make_model(), make_tokenizer())
    [slot] = load(base.model, found)
    scores = evaluate(base.model, base.tokenizer, read(counting), slot).scores
    assert scores["loss"] == pytest.approx(result.scores["loss"], rel=1e-5)


def test_the_loss_that_rounding_costs_is_told(counting: str, tmp_path: Path) -> None:
    exact, low = (trained(counting, tmp_path, stored=dtype, validation=0.25).scores for dtype in ("float32", "int3"))
    assert "rounding_loss" not in exact and low["rounding_loss"] != 0
    assert low["train_loss"] == exact["train_loss"] and low["eval_loss"] != exact["eval_loss"]
    assert abs(low["rounding_loss"]) > abs(
        trained(counting, tmp_path, stored="int8", validation=0.25).scores["rounding_loss"]
    )


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_rounded_is_what_a_file_gives_back(dtype: str) -> None:
    bank = inject(make_model(), AdapterSpec(TRIPLETS, rank=4))
    adapter = bank.extract(bank.first)
    found = rounded(adapter, dtype)
    assert torch.equal(found.flat, decode(encode(adapter, dtype)).flat) and rounds(dtype) == (dtype in LOSSY)


@pytest.mark.parametrize("dtype", LOSSY)
def test_pruned_triplets_change_no_rounding(dtype: str) -> None:
    bank = inject(make_model(), AdapterSpec(TRIPLETS, rank=4))
    adapter = bank.extract(bank.first)
    numbers = torch.Generator().manual_seed(0)
    adapter = replace(adapter, flat=torch.randn(adapter.num_params, generator=numbers))
    for site in adapter.layout.site_names:
        adapter.tensors[f"{site}.d"][1::2] = 0
        adapter.tensors[f"{site}.A"][1] = 100.0
    first, last = rounded(compacted(adapter), dtype).tensors, rounded(without_pruned(adapter), dtype).tensors
    for site in adapter.layout.site_names:
        for key in (f"{site}.d", f"{site}.A"):
            assert torch.allclose(first[key], last[key][::2], rtol=1e-5)
        assert torch.allclose(first[f"{site}.B"], last[f"{site}.B"][:, ::2], rtol=1e-5)


def test_a_method_without_triplets_is_left_as_it_is() -> None:
    other = next(name for name, row in METHODS.items() if not {"A", "B", "d"} <= set(row.trained))
    bank = inject(make_model(), AdapterSpec(other, rank=4))
    adapter = bank.extract(bank.first)
    assert without_pruned(adapter) is adapter
