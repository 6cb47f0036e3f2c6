import torch
from tiny_models import make_tokenizer

from polyvera.model.load import load_base
from polyvera.model.token_types import second_text, separator


def test_the_second_text_begins_behind_the_first_separator() -> None:
    ids = torch.tensor([[1, 5, 9, 6, 9, 0], [1, 5, 6, 9, 0, 0]])
    assert second_text(ids, 9).tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_a_tokenizer_without_types_has_no_separator() -> None:
    assert separator(make_tokenizer()) is None


def test_types_are_the_tokenizers_own() -> None:
    tokenizer = load_base("minilm", task="auto").tokenizer
    own = tokenizer("one text", "and another one")
    sep = separator(tokenizer)
    assert sep == tokenizer.sep_token_id
    assert second_text(torch.tensor([own["input_ids"]]), sep)[0].tolist() == own["token_type_ids"]
