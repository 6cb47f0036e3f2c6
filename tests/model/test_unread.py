"""Which adapters nobody asks, and the one sentence that says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from polyvera.errors import SpecError
from polyvera.model.unread import CLASS, check_read, is_read, unread_class


def adapter_of(name: str, *, head: bool = False) -> Any:
    layout = SimpleNamespace(head=(("qa_outputs.weight", (2, 4)),) if head else ())
    return SimpleNamespace(origin={CLASS: name} if name else {}, layout=layout)


READ = (
    "",
    "LlamaForCausalLM",
    "BertForSequenceClassification",
    "RobertaForTokenClassification",
    "PooledForSequenceClassification",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "BertModel",
    "LlamaModel",
)


@pytest.mark.parametrize("name", READ)
def test_what_a_task_asks_is_read(name):
    check_read(adapter_of(name, head=True), "acme/one")
    assert unread_class(adapter_of(name)) == "" and is_read(adapter_of(name, head=True))


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BertForMultipleChoice", "T5EncoderModel", "BartModel"])
def test_what_no_task_asks_is_told_in_one_sentence(name):
    with pytest.raises(SpecError, match=f"^acme/one is an adapter of {name}, .*exported .* and merged [^.]*{name}$"):
        check_read(adapter_of(name, head=name.endswith(("Answering", "Choice"))), "acme/one")


def test_vectors_of_a_whole_encoder_are_asked_whatever_its_output_layer_was_for():
    adapter = adapter_of("BertForMaskedLM")
    check_read(adapter, "acme/one")
    assert unread_class(adapter) == "BertForMaskedLM" and not is_read(adapter_of("BertForMaskedLM", head=True))
