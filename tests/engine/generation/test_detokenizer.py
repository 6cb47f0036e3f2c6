"""Detokenizer comes piece by piece, never with half a character, and ends before a stop text."""

import random

import pytest
from tiny_serve import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from polyvera.engine.generation.detokenizer import BROKEN, Detokenizer

TOKENIZER = make_tokenizer()
TEXTS = ["plain", "the trüe €uro in 東京 and 😀👩‍🚀 …", "é" * 40, "\n\t  two  spaces ", "e\u0301 combining", ""]


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece has it: spaces are ▁, and what is no piece is bytes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁the", "▁a", "a", "é", "▁", BROKEN, "▁▁"]
    bpe = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces(text: Detokenizer, tokens: list[int]) -> list[str]:
    return [*(text.add(token) for token in tokens), text.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_join_to_it_and_split_no_character(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    told = pieces(Detokenizer(TOKENIZER), tokens)
    assert "".join(told) == text and not any(BROKEN in piece for piece in told)
    if text.isascii():
        assert "" not in told[:-1] and told[-1] == ""


@pytest.mark.parametrize("seed", range(40))
def test_the_pieces_of_random_tokens_join_to_the_decoded_whole(seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(len(TOKENIZER)) for _ in range(60)]
    told = pieces(Detokenizer(TOKENIZER), tokens)
    assert "".join(told) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_no_text_do_no_harm_to_a_tokenizer_with_byte_fallback(seed: int) -> None:
    tokenizer, draw = with_byte_fallback(), random.Random(seed)
    told = pieces(Detokenizer(tokenizer), [draw.randrange(len(tokenizer)) for _ in range(60)])
    assert len("".join(told)) > 30
    good = [token for char in "a€é😀" for token in _as_bytes(char)] + [tokenizer.convert_tokens_to_ids("▁the")]
    told = pieces(Detokenizer(tokenizer), good)
    assert "".join(told) == "a€é😀 the" and not any(BROKEN in piece for piece in told)


def _as_bytes(char: str) -> list[int]:
    return [3 + byte for byte in char.encode()]


def test_half_a_character_at_the_end_is_told_as_broken() -> None:
    tokens = TOKENIZER.encode("in €", add_special_tokens=False)[:-1]
    told = pieces(Detokenizer(TOKENIZER), tokens)
    assert "".join(told[:-1]) == "in " and told[-1].startswith(BROKEN)
    assert "".join(told) == TOKENIZER.decode(tokens)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("the",), "in "),
        (("he t",), "in t"),
        (("true", "in the"), ""),
        (("z", "e tr"), "in th"),
        (("true thing", "ing"), "in the "),
        (("nowhere",), "in the true thing €"),
        (("€",), "in the true thing "),
    ],
)
def test_an_answer_ends_before_the_first_stop_text(stops: tuple[str, ...], expected: str) -> None:
    text = Detokenizer(TOKENIZER, stops)
    told = []
    for token in TOKENIZER.encode("in the true thing €", add_special_tokens=False):
        told.append(text.add(token))
        assert "".join(told) == expected[: len("".join(told))]
        if text.is_stopped:
            break
    told.append(text.finish())
    assert "".join(told) == expected and text.is_stopped == any(s in "in the true thing €" for s in stops)


def test_what_could_become_a_stop_text_is_held_until_it_cannot() -> None:
    text = Detokenizer(TOKENIZER, ("ab!", "bc?"))
    ids = {char: TOKENIZER.encode(char, add_special_tokens=False)[0] for char in "xabc?"}
    assert [text.add(ids[char]) for char in "xabca"] == ["x", "", "", "a", "bc"]
    assert text.finish() == "a" and not text.is_stopped
