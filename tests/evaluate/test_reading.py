"""A prompt stands before its answer, or in an encoder of its own, as the model has it."""

import pytest
import torch
from tiny_models import make_model, make_seq2seq, make_tokenizer

from polyvera.errors import PromptError
from polyvera.evaluate.reading import AS_PREFIX, IN_ENCODER, reading_of
from polyvera.model.message import Message


def test_each_model_has_its_way() -> None:
    assert reading_of(make_model()) is AS_PREFIX
    assert reading_of(make_seq2seq("t5")) is reading_of(make_seq2seq("bart")) is IN_ENCODER


def test_an_answer_shares_its_prompts_length_or_has_its_own() -> None:
    assert AS_PREFIX.num_tokens([5] * 7, 9) == 16 and AS_PREFIX.num_before(7) == 7
    assert IN_ENCODER.num_tokens([5] * 7, 9) == 9 and IN_ENCODER.num_before(7) == 1


@pytest.mark.parametrize(("family", "first"), [("t5", 0), ("bart", 1)])
def test_a_decoder_begins_as_in_training(family: str, first: int) -> None:
    model, tokenizer = make_seq2seq(family), make_tokenizer()
    ids = torch.tensor([[8, 9, 10]])
    with torch.no_grad():
        found = IN_ENCODER.inputs(model, tokenizer, ids, torch.ones_like(ids), [0])
        encoded = model.get_encoder()(input_ids=ids)[0]
    assert found["decoder_start_token_id"] == first
    torch.testing.assert_close(found["encoder_outputs"][0], encoded)
    assert int(model.prepare_decoder_input_ids_from_labels(torch.tensor([[9, 1]]))[0, 0]) == first


def test_an_encoder_reads_no_conversation() -> None:
    with pytest.raises(PromptError, match="leave chat out"):
        IN_ENCODER.ids(make_tokenizer(), (Message("user", "w1"),))
