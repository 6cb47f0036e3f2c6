"""A decoder reads, in every family, what transformers itself makes of labels."""

import pytest
import torch
import transformers as T
from tiny_models import BART, SEQ2SEQ_IDS, make_model, make_seq2seq

from polyvera.model.decoder_inputs import START, decoder_inputs, set_start_token, shifted

SIZES = {**SEQ2SEQ_IDS, **BART, "pad_token_id": 2, "decoder_start_token_id": 1, "dropout": 0.0}
FAMILIES = {
    "t5": lambda: make_seq2seq("t5"),
    "bart": lambda: make_seq2seq("bart"),
    "m2m_100": lambda: T.M2M100ForConditionalGeneration(T.M2M100Config(**SIZES)),
    "blenderbot": lambda: T.BlenderbotForConditionalGeneration(T.BlenderbotConfig(**SIZES)),
    "mbart": lambda: T.MBartForConditionalGeneration(T.MBartConfig(**SIZES)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_that_labels_give(family):
    model = FAMILIES[family]().eval()
    ids, labels = torch.tensor([[8, 9, 10], [8, 9, 2]]), torch.tensor([[12, 13, 1], [14, 1, -100]])
    shift = decoder_inputs(model)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).logits
        torch.testing.assert_close(model(input_ids=ids, decoder_input_ids=shift(labels)).logits, expected)


def test_labels_are_put_one_place_to_the_right():
    labels = torch.tensor([[12, 13, 1], [14, 1, -100]])
    assert shifted(labels, 5, 2).tolist() == [[5, 12, 13], [5, 14, 1]]
    assert shifted(torch.tensor([[14, -100, -100]]), 5, 2).tolist() == [[5, 14, 2]]
    assert decoder_inputs(make_model()) is None


def test_a_decoder_without_a_first_token_gets_one():
    model = make_seq2seq("t5")
    for known, expected in ((7, 7), (None, model.config.pad_token_id)):
        setattr(model.config, START, None)
        setattr(model.generation_config, START, known)
        set_start_token(model)
        assert getattr(model.config, START) == expected
    set_start_token(make_model())
