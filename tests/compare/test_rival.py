"""Rivals: PEFT's own parameters are what trains, and their bytes are what PEFT would store."""

from pathlib import Path
from typing import Any

import pytest
import torch

from polyvera.adapter.inject import banks_of
from polyvera.compare.baseline import BASELINES, RIVALS
from polyvera.compare.comparison import Comparison, compare
from polyvera.compare.rival import banked_bytes, piece_length, with_rival
from polyvera.errors import RecipeError
from polyvera.model.load import Base

SHAPES = {"layers.0.q": (32, 32), "layers.0.v": (32, 16)}
SIZES: dict[str, dict[str, int]] = {
    "peft-fourierft": {"n_frequency": 20},
    "peft-randlora": {"r": 4},
    "peft-unilora": {"theta_d_length": 50},
    "peft-vblora": {"num_vectors": 8},
}


def test_every_rival_trains_in_the_same_loop(choices: dict[str, Any], tmp_path: Path) -> None:
    given = choices | {"methods": list(RIVALS), "seeds": [0], "factors": [1.0]}
    given["method"] = {name: {"peft": peft} for name, peft in SIZES.items()}
    runs = compare(Comparison(**given), tmp_path / "out")
    assert [run.method for run in runs] == list(RIVALS)
    for run in runs:
        assert run.steps == 2 and 0 < run.stored_bytes == run.adapter_bytes < 4 * run.num_params + 1
        assert run.lr == BASELINES[run.method].lr


@pytest.mark.parametrize("name", RIVALS)
def test_only_what_peft_added_and_the_head_train(classifier: Base, name: str) -> None:
    before = set(dict(classifier.model.named_parameters()))
    found = with_rival(classifier, BASELINES[name].rival, SIZES.get(name, {}))
    assert found.base.model is classifier.model and not banks_of(classifier.model)
    trained = found.base.trained or frozenset()
    heads = {n for n in trained if n.startswith(tuple(classifier.head))}
    assert heads and trained - heads and not (trained - heads) & before
    ids = torch.arange(6)[None]
    assert torch.isfinite(classifier.model(input_ids=ids).logits).all()


def test_vb_lora_stores_its_bank_and_indices() -> None:
    assert piece_length(SHAPES) == 16
    choices = {"r": 4, "num_vectors": 8, "topk": 2, "vector_length": 16}
    assert banked_bytes(choices, SHAPES, 0) == 4 * 8 * 16 + 4 * (2 + 2 + 2 + 1) * (2 + 4)


def test_choices_of_peft_are_for_peft(choices: dict[str, Any], classifier: Base) -> None:
    own = choices["methods"][-1]
    with pytest.raises(RecipeError, match="for methods of PEFT's own code"):
        Comparison(**choices | {"method": {own: {"peft": {"r": 3}}}})
    with pytest.raises(RecipeError, match="does not make FOURIERFT"):
        with_rival(classifier, RIVALS["peft-fourierft"][1], {"n_freqency": 3})
