"""The card: front matter that hubs read, and a warning where PEFT answers otherwise."""

import re
from dataclasses import replace

import pytest
import torch
from drawn_adapters import drawn
from peft_oracle import trained
from tiny_models import make_classifier

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.foreign import ForeignWarning
from polyvera.store.peft import export_peft
from polyvera.store.peft.card import POOLED, model_card, warnings_of
from polyvera.store.peft.tasks import TASKS


def test_the_front_matter_is_what_hubs_read():
    card = model_card(replace(drawn("vera"), labels=("a", "b")), "org/base", "VERA", TASKS["SEQ_CLS"])
    front = re.match(r"---\n(.*?)\n---\n", card, re.S)[1].splitlines()
    assert {'base_model: "org/base"', "library_name: peft", "base_model_relation: adapter", "- vera"} <= set(front)
    assert "pipeline_tag: text-classification" in front
    assert "AutoPeftModelForSequenceClassification" in card and "polyvera import" in card and "Classes: a, b" in card
    assert "base_model:" not in model_card(drawn("vera"), "", "VERA", None)


def test_its_python_loads_a_head_of_any_size(tmp_path, monkeypatch):
    make_classifier().base_model.save_pretrained(tmp_path / "base")
    wide = type(make_classifier()).from_pretrained(tmp_path / "base", num_labels=3)
    adapter = trained(wide, AdapterSpec("lora", 4, ("query",), head=("classifier",)))
    folder = export_peft(replace(adapter, labels=("a", "b", "c"), model=str(tmp_path / "base")), tmp_path / "a")
    monkeypatch.chdir(folder)
    told = {}
    exec(re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1], told)
    head = told["model"].base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(head.weight, adapter.tensors["classifier.weight"])


def test_a_pooled_classifier_is_warned_of(tmp_path):
    adapter = drawn("vera", head={"classifier.weight": (2, 8), "classifier.bias": (2,)})
    assert warnings_of(adapter) == []
    pooled = replace(adapter, origin={"base_model_class": POOLED})
    with pytest.warns(ForeignWarning, match="reads the first token"):
        folder = export_peft(pooled, tmp_path / "a")
    assert "sentence-transformers" in (folder / "README.md").read_text()
