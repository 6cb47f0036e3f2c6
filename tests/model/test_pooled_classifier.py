"""A classifier of an encoder whose folder says how a text becomes one vector."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pooling import write
from tiny_models import make_classifier, make_tokenizer
from transformers import BertModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from polyvera.adapter.inject import eject, inject, load
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_head
from polyvera.model.config import kind_of, trained_labels
from polyvera.model.load import load_base
from polyvera.model.pooled_classifier import PooledForSequenceClassification
from polyvera.model.pooling import MODES
from polyvera.model.shapes import model_shapes

FLAG = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
ROWS = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 9, 1, 1]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
}


def distilbert() -> DistilBertModel:
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    return DistilBertModel(DistilBertConfig(vocab_size=47, max_position_embeddings=64, pad_token_id=1, **sizes))


ENCODERS = {"bert": lambda: BertModel(make_classifier().config), "distilbert": distilbert}


def folder_of(path: Path, encoder: PreTrainedModel, mode: str = "mean") -> str:
    write(path, {flag: mode == name for name, flag in FLAG.items()}, "Normalize")
    encoder.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def logits(model: Any, **rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**(rows or ROWS)).logits


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("mode", MODES)
def test_the_head_reads_the_vector_that_the_folder_states(tmp_path: Path, name: str, mode: str) -> None:
    encoder = ENCODERS[name]()
    model: Any = load_base(folder_of(tmp_path, encoder, mode), task="label", labels=("a", "b", "c")).model
    with torch.inference_mode():
        hidden = encoder.eval()(**ROWS)[0]
        expected = model.classifier(MODES[mode](hidden, ROWS["attention_mask"]))
    torch.testing.assert_close(logits(model), expected)
    alone = torch.cat([logits(model, input_ids=ROWS["input_ids"][:1]), logits(model, input_ids=torch.tensor([[8, 9]]))])
    torch.testing.assert_close(alone, expected)
    assert (kind_of(model), find_head(model), trained_labels(model)) == ("classification", ("classifier",), ())


@pytest.mark.parametrize("name", ENCODERS)
def test_the_plan_counts_what_is_loaded(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, ENCODERS[name]())
    model = load_base(folder, task="label", labels=("a", "b", "c")).model
    shapes = model_shapes(folder, AdapterSpec(head=find_head(model)), num_labels=3)
    assert shapes.num_params == model.num_parameters()
    assert shapes.head == {"classifier.weight": (3, 32), "classifier.bias": (3,)}


def test_a_head_of_the_checkpoint_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, make_classifier(3))
    model = load_base(folder, task="auto").model
    assert type(model) is type(make_classifier())
    torch.testing.assert_close(logits(model), logits(make_classifier(3)))


def test_settings_that_cannot_be_met_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, {FLAG["mean"]: True}, "Dense")
    BertModel(make_classifier().config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert type(load_base(str(tmp_path), task="label").model) is type(make_classifier())


@pytest.mark.parametrize("mode", MODES)
def test_a_merged_adapter_is_a_folder_that_answers_alike(tmp_path: Path, mode: str) -> None:
    base = load_base(folder_of(tmp_path / "base", distilbert(), mode), task="label", labels=("a", "b"))
    bank = inject(base.model, AdapterSpec(head=("classifier",)))
    with torch.no_grad():
        bank.flat.add_(0.3)
    adapter = bank.extract(bank.first)
    eject(base.model)
    (slot,) = load(base.model, adapter)
    with route(slot):
        expected = logits(base.model)
    merge(base.model).save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    base.tokenizer.save_pretrained(tmp_path / "merged")
    again = load_base(str(tmp_path / "merged"), task="auto").model
    torch.testing.assert_close(logits(again), expected)
    assert trained_labels(again) == ("a", "b")
    assert load_base(str(tmp_path / "merged"), task="label", labels=("x", "y", "z")).model.num_labels == 3


def test_the_saved_folder_is_one_of_sentence_transformers(tmp_path: Path) -> None:
    base = load_base(folder_of(tmp_path / "base", distilbert()), task="label", labels=("a", "b"))
    assert isinstance(base.model, PooledForSequenceClassification)
    base.model.save_pretrained(tmp_path / "saved")
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Dense"]
    dense = json.loads((tmp_path / "saved" / modules[2]["path"] / "config.json").read_text())
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (32, 2, True)


def test_gradients_are_those_without_checkpointing(tmp_path: Path) -> None:
    model: Any = load_base(folder_of(tmp_path, distilbert()), task="label", labels=("a", "b")).model
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(**ROWS).logits.sum().backward()
        found.append(model.base_model.embeddings.word_embeddings.weight.grad.clone())
    torch.testing.assert_close(*found)
