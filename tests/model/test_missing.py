"""Weights that a checkpoint lacks are trained with the head, or refused by name."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers as T
from families import BERT
from safetensors.torch import load_file, save_file
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import extract, inject, load
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError
from polyvera.model.load import load_as, load_base
from polyvera.model.missing import REPORT, missing_keys, untrained_head


@pytest.fixture
def masked(tmp_path: Path) -> str:
    T.BertForMaskedLM(T.BertConfig(**BERT)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_missing_pooler_is_part_of_the_head(masked: str) -> None:
    base, again = (load_base(masked, task="label", labels=("a", "b")) for _ in range(2))
    assert base.head == ("classifier", "bert.pooler") and base.untrained == ("bert.pooler", "classifier")
    assert fingerprint(base.model) == fingerprint(again.model), "drawn the same at every load"
    bank = inject(base.model, AdapterSpec(rank=2, head=base.head))
    adapter = extract(bank, bank.first, base.model)
    assert {key.rpartition(".")[0] for key, _ in adapter.layout.head} == {"classifier", "bert.pooler.dense"}
    ids = torch.tensor([[3, 4, 5]])
    load(again.model, adapter)
    torch.testing.assert_close(base.model.eval()(ids).logits, again.model.eval()(ids).logits)


def test_a_missing_weight_of_the_backbone_is_refused_by_name(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    kept.pop("model.layers.1.mlp.up_proj.weight")
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"its files lack model\.layers\.1\.mlp\.up_proj\.weight, without which"):
        load_base(str(tmp_path))


def test_a_weight_of_another_shape_is_missing() -> None:
    info = {"missing_keys": {"a"}, "mismatched_keys": [("b", (1,), (2,))]}
    assert missing_keys(info) == {"a", "b"}
    assert untrained_head(make_model(), ()) == ()


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"num_hidden_layers": 1}, "files hold model.layers.1, which its config.json does not have"),
        ({"intermediate_size": 40}, "has the shape .* in its files, and .* by its config.json"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, lie: dict[str, int], words: str) -> None:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | lie))
    with pytest.raises(RecipeError, match=words):
        load_base(str(tmp_path))


def test_the_table_of_transformers_is_kept_off_the_terminal(masked: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    try:
        T.BertForSequenceClassification.from_pretrained(masked)
        assert REPORT in caplog.text, "so it is known by this title"
        caplog.clear()
        load_base(masked, task="label", labels=("a", "b"))
        load_as(masked, "BertForSequenceClassification")
        assert REPORT not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
