"""What an adapter knows of its base survives a folder: task, class, revision, labels, scores."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as T
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
)
from peft_oracle import KINDS, logits, saved_by_peft, trained

from polyvera.adapter.inject import eject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.peft.origin import labels_from, origin_of, task_for

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = "adapter_config.json"


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def saved_base(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("method", METHODS)
def test_auto_peft_loads_every_row_of_the_table(method, small_llama, tmp_path, ids):
    base = saved_base(small_llama, tmp_path / "base")
    adapter = replace(trained(base, AdapterSpec(method, 4)), model=str(tmp_path / "base"))
    adapter = replace(adapter, origin={"base_model_class": type(base).__name__})
    folder = export_peft(adapter, tmp_path / "out", model=base)
    config = config_of(folder)
    assert config["task_type"] == "CAUSAL_LM" and config["peft_version"] and (folder / "README.md").is_file()
    from polyvera.adapter.inject import load

    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(folder).eval(), ids)
    load(base, adapter)
    torch.testing.assert_close(theirs, logits(base, ids), rtol=1e-5, atol=1e-5)


def test_a_classifier_keeps_its_labels_scores_and_revision(small_bert, tmp_path, ids):
    small_bert.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    base = saved_base(small_bert, tmp_path / "base")
    source = saved_by_peft(tmp_path / "a", base, KINDS["lora"](["query"]), task="SEQ_CLS")
    (source / CONFIG).write_text(json.dumps(config_of(source) | {"revision": "abc"}))
    adapter = replace(import_peft(source, base), scores={"accuracy": 0.5}, created="2026-01-01", lr=0.01)
    assert adapter.labels == ("no", "maybe", "yes") and adapter.origin["task_type"] == "SEQ_CLS"
    back = export_peft(adapter, tmp_path / "b")
    again = import_peft(back, base)
    kept = ("labels", "scores", "created", "model", "origin", "base", "lr")
    assert {k: getattr(again, k) for k in kept} == {k: getattr(adapter, k) for k in kept}
    assert config_of(back)["revision"] == "abc" == adapter.origin["revision"]
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(
        export_peft(replace(adapter, origin={"task_type": "SEQ_CLS"}), tmp_path / "c"), num_labels=3
    )
    ours = AutoPeftModelForSequenceClassification.from_pretrained(source, revision=None, num_labels=3)
    assert torch.equal(logits(theirs.eval(), ids), logits(ours.eval(), ids))


def test_a_bare_backbones_adapter_goes_in_and_out(small_bert, tmp_path, ids):
    bare = saved_base(small_bert.bert, tmp_path / "base")
    source = saved_by_peft(tmp_path / "a", bare, KINDS["patterns"](["query", "value"]), task="FEATURE_EXTRACTION")
    whole = T.BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    adapter = import_peft(source, whole)
    assert all(name.startswith("bert.") for name in adapter.layout.site_names)
    folder = export_peft(adapter, tmp_path / "b", model=whole)
    theirs = AutoPeftModelForFeatureExtraction.from_pretrained(folder).eval()
    wanted = AutoPeftModelForFeatureExtraction.from_pretrained(source).eval()
    assert torch.equal(theirs(ids).last_hidden_state, wanted(ids).last_hidden_state)
    assert torch.equal(import_peft(folder, whole).flat, adapter.flat)


@pytest.mark.parametrize("knows_model", [True, False])
def test_an_adapter_for_vectors_is_written_for_the_bare_backbone(knows_model, small_bert, tmp_path, ids):
    saved_base(small_bert.bert, tmp_path / "base")
    whole = T.BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    made = trained(whole, AdapterSpec(rank=4, targets=("query", "output.dense")))
    origin = {"base_model_class": "BertForSequenceClassification"}
    adapter = replace(made, task="pairs", origin=origin, model=str(tmp_path / "base"))
    folder = export_peft(adapter, tmp_path / "a", model=whole if knows_model else None)
    theirs = AutoPeftModelForFeatureExtraction.from_pretrained(folder).eval()
    load(whole, adapter)
    assert torch.equal(theirs(ids).last_hidden_state, whole.bert(ids).last_hidden_state)
    eject(whole)
    assert torch.equal(import_peft(folder, whole).flat, adapter.flat)


@pytest.mark.parametrize(
    ("outputs", "problem", "meaning"),
    [
        (1, None, ("regression", ("score",))),
        (1, "regression", ("regression", ("score",))),
        (2, None, ("", ("LABEL_0", "LABEL_1"))),
        (2, "multi_label_classification", ("multi-label", ("LABEL_0", "LABEL_1"))),
    ],
)
def test_what_a_foreign_head_answers(outputs, problem, meaning, tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = T.BertConfig(**sizes, num_attention_heads=2, num_labels=outputs, problem_type=problem)
    base = saved_base(T.BertForSequenceClassification(config), tmp_path / "base")
    adapter = import_peft(saved_by_peft(tmp_path / "a", base, KINDS["lora"](["query"]), task="SEQ_CLS"), base)
    assert (adapter.task, adapter.labels) == meaning


def test_a_class_without_a_task_is_written_for_auto_peft(tmp_path, ids):
    config = T.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    base = saved_base(T.BertForMaskedLM(config), tmp_path / "base")
    adapter = import_peft(saved_by_peft(tmp_path / "a", base, KINDS["lora"](["query"])), base)
    folder = export_peft(adapter, tmp_path / "b")
    assert config_of(folder)["auto_mapping"]["base_model_class"] == "BertForMaskedLM"
    theirs = AutoPeftModel.from_pretrained(folder).eval()
    assert not torch.equal(logits(theirs, ids), logits(base, ids))


def test_a_task_needs_its_head(small_llama, small_bert):
    adapter = trained(small_llama, AdapterSpec(rank=4))
    assert task_for(adapter, None, ()) is None and task_for(adapter, "CAUSAL_LM", ()).name == "CAUSAL_LM"
    of_class = replace(adapter, origin={"base_model_class": "BertForSequenceClassification"})
    assert task_for(of_class, None, ()) is None and task_for(of_class, None, ("classifier",)).name == "SEQ_CLS"
    for asked, said in (("TOKEN_CLS", "classifier or score"), ("CHAT", "must be one of")):
        with pytest.raises(SpecError, match=said):
            task_for(adapter, asked, ())


def test_a_model_without_labels_has_none(small_llama):
    from polyvera.store.peft.config import PeftConfig

    config = PeftConfig(peft_type="LORA", target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert labels_from(config, small_llama, trained(small_llama, AdapterSpec(rank=4)).layout) == ()
    assert origin_of(config, small_llama, "") == {"base_model_class": "LlamaForCausalLM", "task_type": "CAUSAL_LM"}
