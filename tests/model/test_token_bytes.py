"""TokenBytes: the bytes of an answer's tokens are the answer's bytes."""

import pytest
from tiny_serve import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from polyvera.model.token_bytes import Spelling, TokenBytes

TEXTS = ["the true thing", "é", " 🎉 x", "a\nb\t", "ÿ\x00", "日本"]


def make_byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: spaces are ▁, the first of a text is dropped, and bytes are tokens of their own."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "t", "▁a"]
    bpe = models.BPE({name: i for i, name in enumerate(names)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(bpe)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
def test_joined_bytes_are_the_text(text: str) -> None:
    tokenizer = make_tokenizer()
    told, ids = TokenBytes(tokenizer), tokenizer(text).input_ids
    assert b"".join(told.of(i, is_first=n == 0).data for n, i in enumerate(ids)).decode() == text


@pytest.mark.parametrize("pieces", [["▁a", "▁a"], ["▁a", "<0xC3>", "<0xA9>", "b"], ["a", "<0x0A>", "▁", "b"]])
def test_they_are_with_bytes_in_the_vocabulary_too(pieces: list[str]) -> None:
    tokenizer = make_byte_fallback()
    told, ids = TokenBytes(tokenizer), tokenizer.convert_tokens_to_ids(pieces)
    data = b"".join(told.of(i, is_first=n == 0).data for n, i in enumerate(ids))
    assert data.decode() == tokenizer.decode(ids)


def test_what_is_no_text_is_named_by_its_bytes_and_a_special_token_by_its_name() -> None:
    tokenizer = make_tokenizer()
    told, (first, second) = TokenBytes(tokenizer), tokenizer("é").input_ids
    assert [told.of(i) for i in (first, second)] == [
        Spelling("bytes:\\xc3", b"\xc3"),
        Spelling("bytes:\\xa9", b"\xa9"),
    ]
    assert told.of(1) == Spelling("</s>", b"")
    tokenizer.add_tokens(["<think>"])
    added = tokenizer.convert_tokens_to_ids("<think>")
    assert TokenBytes(tokenizer).of(added) == Spelling("<think>", b"<think>")
