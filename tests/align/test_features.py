"""Features of layers are means over a text's own tokens, whatever batch it is in."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import make_classifier, make_model, make_seq2seq, make_tokenizer

from polyvera.align.features import layer_features, prepared, texts_of
from polyvera.errors import DataError
from polyvera.model.load import Base

TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8", "w2 w9 w10"]


def test_padding_is_not_seen() -> None:
    base = Base(make_model(), make_tokenizer())
    together = layer_features(base, TEXTS)
    assert len(together) == 3 and all(own.shape == (4, 32) for own in together)
    alone = layer_features(base, TEXTS[1:2])
    assert all(torch.allclose(own[1], one[0], atol=1e-5) for own, one in zip(together, alone, strict=True))
    ids = torch.tensor([make_tokenizer()(TEXTS[2])["input_ids"]])
    with torch.no_grad():
        hidden = base.model(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.allclose(together[1][2], hidden[1][0].mean(0), atol=1e-5)


@pytest.mark.parametrize("make", [make_classifier, make_seq2seq])
def test_encoders_are_read_too(make: Callable[[], torch.nn.Module]) -> None:
    assert len(layer_features(Base(make(), make_tokenizer()), TEXTS)) >= 2


def test_a_huge_number_is_clipped() -> None:
    plain = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    spiked = plain.clone()
    spiked[:, 3] = 1000.0
    assert float(prepared(spiked)[:, 3].square().mean()) < 0.9
    assert torch.allclose(prepared(spiked).norm(dim=1), torch.ones(50))


def test_texts_are_those_of_a_column(jsonl: Callable[..., str]) -> None:
    path = jsonl([{"n": 1, "text": "a", "b": "x"}, {"n": 2, "text": "a", "b": "y"}, {"n": 3, "text": " ", "b": "z"}])
    assert texts_of(path) == ("text", ["a"]) and texts_of(path, "b", 2) == ("b", ["x", "y"])
    with pytest.raises(DataError, match="no column 'txt'; it has text, b; did you mean 'text'"):
        texts_of(path, "txt")
