"""config: one kind, one number of tokens, one set of special tokens for each model, whoever asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as T
from families import BERT, FAMILIES, GPT2, LLAMA
from tiny_models import WORDS, make_model, make_tokenizer

from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.factory import engine_for
from polyvera.engine.generation.generator import Generator
from polyvera.errors import RecipeError, ServeError, SpecError
from polyvera.model.config import (
    AUTO_TASK,
    CAUSAL_LM,
    CLASSIFICATION,
    ENCODER,
    ENCODER_DECODER,
    OTHER,
    are_placeholders,
    context_length,
    end_tokens,
    kind_of,
    labels_of,
    pad_token,
    set_labels,
    trained_labels,
    vocabulary_size,
)
from polyvera.model.load import load_base
from polyvera.model.shapes import meta_model, model_shapes
from polyvera.model.task import LM
from polyvera.replicas.replica_pool import ReplicaPool

each_family = pytest.mark.parametrize("name", FAMILIES)


def saved(model: T.PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_each_family_has_one_kind() -> None:
    for name, family in FAMILIES.items():
        model = family.make()
        config = type(model.config).from_dict({**model.config.to_dict(), "architectures": [type(model).__name__]})
        assert kind_of(model) == kind_of(config) == family.kind, name


@each_family
def test_each_family_reads_one_number_of_tokens(name: str) -> None:
    family = FAMILIES[name]
    model = family.make().eval()
    assert context_length(model) == family.length
    if family.kind == ENCODER_DECODER:
        return
    with torch.device("meta"):
        assert context_length(family.make()) == family.length  # as plan and replicas ask
    ids = torch.full((1, family.length or 50), 9)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids)[0]).all()


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "mpnet", "bert", "gpt2", "opt"])
def test_one_token_more_is_too_many(name: str) -> None:
    family = FAMILIES[name]
    ids = torch.full((1, (family.length or 0) + 1), 9)
    with pytest.raises((IndexError, RuntimeError)):
        family.make()(input_ids=ids)


def test_a_tokenizer_says_where_the_model_does_not() -> None:
    model, tokenizer = FAMILIES["bloom"].make(), make_tokenizer()
    assert context_length(model, tokenizer) is None  # 10**30 is no limit
    tokenizer.model_max_length = 24
    assert context_length(model, tokenizer) == 24
    assert context_length(make_model(), tokenizer) == 64


@each_family
def test_load_plan_and_the_engines_agree_on_the_kind(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = saved(family.make(), tmp_path / "model")
    base = load_base(folder, task=AUTO_TASK)
    if family.kind == ENCODER_DECODER:
        assert kind_of(base.model) == kind_of(load_base(folder, task=LM).model) == kind_of(meta_model(folder))
        assert model_shapes(folder, kind=CAUSAL_LM).context_length == context_length(base.model) == family.length
        with pytest.raises(ServeError, match="is an encoder-decoder, which no engine serves"):
            engine_for(base).start()
        return
    assert kind_of(base.model) == (CAUSAL_LM if family.kind == CAUSAL_LM else CLASSIFICATION)
    assert isinstance(engine_for(base), Generator if family.kind == CAUSAL_LM else Embedder)
    assert kind_of(meta_model(folder)) == family.kind
    assert model_shapes(folder).context_length == context_length(base.model) == family.length


@pytest.mark.parametrize("architectures", [True, False])
def test_a_decoder_of_an_encoder_family_is_served_by_one_engine_or_several(tmp_path: Path, architectures: bool) -> None:
    folder = saved(FAMILIES["bert decoder"].make(), tmp_path / "decoder")
    if not architectures:
        path = Path(folder, "config.json")
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "architectures"}))
    assert isinstance(engine_for(load_base(folder, task=AUTO_TASK)), Generator)
    assert ReplicaPool(folder, num=2).max_context == 0


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "distilbert"])
def test_an_encoder_is_refused_for_text(name: str, tmp_path: Path) -> None:
    folder = saved(FAMILIES[name].make(), tmp_path / "model")
    with pytest.raises(RecipeError, match="so it cannot write text: use rows with labels"):
        load_base(folder, task=LM)
    with pytest.raises(SpecError, match="so it cannot write text"):
        meta_model(folder, kind=CAUSAL_LM)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (T.LlamaConfig(), CAUSAL_LM),
        (T.GPT2Config(architectures=["GPT2LMHeadModel"]), CAUSAL_LM),
        (T.GPT2Config(architectures=["GPT2ForSequenceClassification"]), CLASSIFICATION),
        (T.RobertaConfig(), ENCODER),
        (T.RobertaConfig(is_decoder=True), CAUSAL_LM),
        (T.RobertaConfig(architectures=["RobertaForMaskedLM"]), ENCODER),
        (T.RobertaConfig(architectures=["RobertaForSequenceClassification"]), CLASSIFICATION),
        (T.RobertaConfig(architectures=["RobertaForCausalLM"]), CAUSAL_LM),
        (T.T5Config(), ENCODER_DECODER),
        (T.BartConfig(architectures=["BartForCausalLM"]), ENCODER_DECODER),
        (T.CLIPVisionConfig(), OTHER),
    ],
)
def test_kind_of_a_configuration(config: T.PreTrainedConfig, kind: str) -> None:
    assert kind_of(config) == kind


def test_a_backbone_alone_gives_vectors() -> None:
    assert kind_of(T.LlamaModel(T.LlamaConfig(**LLAMA))) == kind_of(T.BertModel(T.BertConfig(**BERT))) == ENCODER


# --- special tokens --------------------------------------------------------------------------------------------------


def test_the_pad_token_is_the_models_where_it_has_one() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "w39"
    own = WORDS.index("w39")
    for given, expected in ((3, 3), (None, own), (-1, own), (len(WORDS) + 5, own)):
        config = T.LlamaConfig(**{**LLAMA, "pad_token_id": None})
        model = T.LlamaForCausalLM(config)
        model.config.pad_token_id = given
        assert pad_token(model, tokenizer) == expected
    tokenizer.pad_token = None
    assert pad_token(model, tokenizer) == 1  # the end token
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="neither a pad token nor an end token"):
        pad_token(model, tokenizer)


def test_a_loaded_base_knows_the_pad_token_that_rows_are_filled_with(tmp_path: Path) -> None:
    model = FAMILIES["gpt2 classifier"].make()
    model.config.pad_token_id = None
    base = load_base(saved(model, tmp_path / "model"), task=AUTO_TASK)
    assert base.model.config.pad_token_id == pad_token(base.model, base.tokenizer) == 1


def test_end_tokens_are_the_models_and_the_tokenizers() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    for given, expected in ((None, {1}), (5, {1, 5}), ([5, 6], {1, 5, 6}), (1, {1})):
        model.generation_config.eos_token_id = given
        assert end_tokens(model, tokenizer) == expected
    tokenizer.eos_token = None
    assert end_tokens(model, tokenizer) == {1}
    assert end_tokens(T.BertForMaskedLM(T.BertConfig(**BERT)), tokenizer) <= {1}


def test_the_vocabulary_is_the_text_models() -> None:
    assert all(vocabulary_size(family.make()) == len(WORDS) for family in FAMILIES.values())


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_in_the_order_of_the_outputs() -> None:
    config = T.BertConfig(**BERT, num_labels=3)
    assert are_placeholders(labels_of(config)) and len(labels_of(config)) == 3
    config.id2label = {2: "c", 0: "a", 1: "b"}  # as a JSON file may have them
    assert labels_of(config) == ("a", "b", "c") and not are_placeholders(labels_of(config))
    set_labels(config, ("x", "y", "z"))
    assert labels_of(config) == ("x", "y", "z") and config.label2id == {"x": 0, "y": 1, "z": 2}


def test_a_head_has_labels_where_it_came_with_its_checkpoint(tmp_path: Path) -> None:
    classifier = T.GPT2ForSequenceClassification(T.GPT2Config(**GPT2))
    set_labels(classifier.config, ("no", "yes"))
    folder = saved(classifier, tmp_path / "trained")
    assert trained_labels(load_base(folder, task=AUTO_TASK).model) == ("no", "yes")
    bare = saved(FAMILIES["bert"].make(), tmp_path / "bare")
    assert trained_labels(load_base(bare, task=AUTO_TASK).model) == ()
    assert trained_labels(make_model()) == ()
