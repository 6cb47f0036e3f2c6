"""The base that a folder is for: the class of its task, with as many classes as its head has."""

import copy
import json

import pytest
import torch
import transformers as T
from peft import LoraConfig, PeftModel
from peft_oracle import KINDS, saved_by_peft
from tiny_models import make_tokenizer

from polyvera.adapter.inject import load
from polyvera.errors import FormatError, SpecError
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.peft.base_model import base_for, kind_of_task, num_classes_in
from polyvera.store.peft.tasks import TASKS

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = T.BertConfig(**SIZES, num_labels=3)
T5 = T.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
MODELS = {
    "CAUSAL_LM": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)), ["q_proj"]),
    "SEQ_CLS": (lambda: T.BertForSequenceClassification(BERT), ["query"]),
    "TOKEN_CLS": (lambda: T.BertForTokenClassification(BERT), ["query"]),
    "QUESTION_ANS": (lambda: T.BertForQuestionAnswering(BERT), ["query"]),
    "SEQ_2_SEQ_LM": (lambda: T.T5ForConditionalGeneration(T5), ["q", "v"]),
    "FEATURE_EXTRACTION": (lambda: T.BertModel(BERT), ["query"]),
    None: (lambda: T.BertForMaskedLM(BERT), ["query"]),
}


@pytest.fixture
def folders(tmp_path):
    """A base without the head, or with its own, and a folder of PEFT's for the whole model."""

    def made(task):
        make, targets = MODELS[task]
        model = make().eval()
        source = saved_by_peft(tmp_path / "peft", model, KINDS["lora"](targets), task=task)
        model.save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        return source, str(tmp_path / "base"), model

    return made


@pytest.mark.parametrize("task", MODELS)
def test_every_task_is_imported_without_a_word_of_the_class(task, folders):
    source, name, model = folders(task)
    base = base_for(source, name)
    adapter = import_peft(source, base)
    assert set(MODELS) == {*TASKS, None} and adapter.layout.sites
    if task != "FEATURE_EXTRACTION":
        assert type(base) is type(model)
        assert adapter.layout == import_peft(source, model).layout


def test_the_head_says_how_many_classes_there_are(folders):
    source, name, _ = folders("SEQ_CLS")
    config = json.loads((source.parent / "base" / "config.json").read_text())
    (source.parent / "base" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    assert num_classes_in(source, TASKS["SEQ_CLS"]) == 3
    assert base_for(source, name).config.num_labels == 3
    assert num_classes_in(source, TASKS["QUESTION_ANS"]) is None


def test_a_folder_is_looked_at_before_the_model_is_read(folders, tmp_path):
    source, _, _ = folders("CAUSAL_LM")
    with pytest.raises(FormatError, match="there is no folder"):
        base_for(tmp_path / "none", "no/model")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | {"lora_bias": True}))
    with pytest.raises(SpecError, match="lora_bias"):
        base_for(source, "no/model")


def test_a_task_that_has_no_class_of_such_a_base_takes_its_own(folders):
    _, name, _ = folders("SEQ_2_SEQ_LM")
    assert kind_of_task(TASKS["SEQ_2_SEQ_LM"], name) == "AutoModelForSeq2SeqLM"
    assert kind_of_task(TASKS["CAUSAL_LM"], name) == "T5ForConditionalGeneration"


def test_a_class_that_is_none_is_refused(folders):
    source, name, _ = folders(None)
    config = json.loads((source / "adapter_config.json").read_text())
    mapping = {"base_model_class": "NoSuchModel", "parent_library": "os"}
    (source / "adapter_config.json").write_text(json.dumps(config | {"auto_mapping": mapping}))
    with pytest.raises(Exception, match="no model class 'NoSuchModel'"):
        base_for(source, name)
    assert LoraConfig.from_pretrained(source).auto_mapping == mapping


def test_a_decoder_without_an_output_layer_is_loaded_for_vectors(tmp_path):
    bare = T.LlamaModel(T.LlamaConfig(**SIZES, pad_token_id=1)).eval()
    source = saved_by_peft(tmp_path / "peft", bare, KINDS["lora"](["q_proj"]), task="FEATURE_EXTRACTION")
    bare.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    adapter = import_peft(source, base_for(source, str(tmp_path / "base")))
    assert adapter.layout.site_names == ("model.layers.0.self_attn.q_proj",)
    assert torch.equal(adapter.flat, import_peft(source, bare).flat)


HALVES = (("T5", ["q"]), ("MT5", ["q", "v"]), ("UMT5", ["q"]), ("LongT5", ["q", "v"]))


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("family", "targets"), HALVES)
def test_an_encoder_of_an_encoder_decoder_is_the_base_of_its_adapters(family, targets, whole, tmp_path):
    half, both = (getattr(T, f"{family}{end}") for end in ("EncoderModel", "ForConditionalGeneration"))
    config = getattr(T, f"{family}Config")(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    saved = (both if whole else half)(config).eval()
    saved.save_pretrained(tmp_path / "base")
    model = half.from_pretrained(tmp_path / "base")
    source = saved_by_peft(tmp_path / "peft", model, KINDS["lora"](targets), task="FEATURE_EXTRACTION")
    base = base_for(source, str(tmp_path / "base"))
    assert type(base) is half
    adapter = import_peft(source, base)
    ids = torch.arange(3, 12)[None]
    wanted = PeftModel.from_pretrained(copy.deepcopy(model), source)(input_ids=ids).last_hidden_state
    out = export_peft(adapter, tmp_path / "out", model=base)
    again = PeftModel.from_pretrained(copy.deepcopy(model), out)(input_ids=ids).last_hidden_state
    load(base.eval(), adapter)
    assert torch.equal(base(input_ids=ids).last_hidden_state, wanted) and torch.equal(again, wanted)


def test_an_adapter_of_both_halves_keeps_both(tmp_path):
    model = T.T5Model(T5).eval()
    model.save_pretrained(tmp_path / "base")
    source = saved_by_peft(tmp_path / "peft", model, KINDS["lora"](["q"]), task="FEATURE_EXTRACTION")
    base = base_for(source, str(tmp_path / "base"))
    assert type(base) is T.T5Model and len(import_peft(source, base).layout.sites) == 3
