"""prompt: what stands before an answer is the same tokens in training, evaluation, generation and the server."""

from __future__ import annotations

import pytest
from tiny_models import WORDS, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from polyvera.data.encoding import IGNORED, encode
from polyvera.data.tables import table
from polyvera.errors import DataError, PromptError
from polyvera.model.message import Message
from polyvera.model.prompt import (
    PLAIN,
    TEMPLATE,
    Template,
    bare_ids,
    chat_ids,
    chat_text,
    ids_text,
    passage,
    prompt_form_text,
    prompt_ids,
    templated,
)

BEGIN, END = 0, 1
SPECIAL = [("<s>", BEGIN), ("</s>", END)]
# What a tokenizer puts around a text, and around a pair of texts.
AROUND = {
    "nothing": ("$A", "$A $B"),
    "beginning": ("<s> $A", "<s> $A $B"),
    "end": ("$A </s>", "$A </s> $B </s>"),
    "both": ("<s> $A </s>", "<s> $A </s> $B </s>"),
    "the end twice": ("<s> $A </s> </s>", "<s> $A </s> $B </s>"),
    "the end at both sides": ("</s> $A </s>", "</s> $A </s> $B </s>"),
}
CHAT = (Message("system", "w1"), Message("user", "w2 w3"), Message("assistant", "w4"), Message("user", "w5"))


def make(around: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    single, pair = AROUND[around]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=SPECIAL)
    return tokenizer


def words(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


each_tokenizer = pytest.mark.parametrize("around", AROUND)


@each_tokenizer
def test_no_end_token_stands_behind_a_prompt(around: str) -> None:
    tokenizer = make(around)
    lead = AROUND[around][0].partition("$A")[0]
    assert words(prompt_ids(tokenizer, "w1 w2")) == f"{lead}w1 w2"
    assert words(prompt_ids(tokenizer, "w1 w2 </s>")) == f"{lead}w1 w2 </s>"  # the user's own
    assert words(prompt_ids(tokenizer, "w1 </s> w2")) == f"{lead}w1 </s> w2"


@each_tokenizer
def test_training_puts_the_same_tokens_before_an_answer(around: str) -> None:
    tokenizer = make(around)
    rows = [{"prompt": "w1 w2", "completion": "w3"}]
    [row] = encode(table("rows", enumerate(rows, 1)), tokenizer, 64).rows
    before = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
    assert before == prompt_ids(tokenizer, "w1 w2")
    assert row["input_ids"][len(before) :] == [*bare_ids(tokenizer, "w3"), END]


@each_tokenizer
@pytest.mark.parametrize("turns", ["all", "last"])
def test_training_puts_the_same_tokens_before_every_turn(around: str, turns: str) -> None:
    tokenizer = make(around)
    messages = (*CHAT, Message("assistant", "w6 w7"))
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in messages]}]
    [row] = encode(table("rows", enumerate(rows, 1)), tokenizer, 64, turns=turns).rows
    ids, labels = row["input_ids"], row["labels"]
    starts = [i for i in range(1, len(ids)) if labels[i] != IGNORED and labels[i - 1] == IGNORED]
    asked = [messages[:4]] if turns == "last" else [messages[:2], messages[:4]]
    assert [ids[:start] for start in starts] == [prompt_ids(tokenizer, turn) for turn in asked]


@each_tokenizer
def test_a_conversation_has_what_its_template_writes_and_nothing_more(around: str) -> None:
    tokenizer = make(around)
    text = chat_text(tokenizer, CHAT, answer_next=True)
    assert words(prompt_ids(tokenizer, CHAT)) == " ".join(text.split())
    told = [{"role": m.role, "content": m.content} for m in CHAT]
    assert prompt_ids(tokenizer, CHAT) == tokenizer.apply_chat_template(
        told, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert words(chat_ids(tokenizer, CHAT, answer_next=False)).endswith("user : w5 </s>")


def test_a_template_that_writes_the_beginning_gives_one() -> None:
    tokenizer = make("beginning")
    tokenizer.chat_template = "<s> " + tokenizer.chat_template
    assert prompt_ids(tokenizer, CHAT).count(BEGIN) == 1


def test_a_text_without_words_keeps_its_beginning() -> None:
    assert prompt_ids(make("both"), "") == [BEGIN]
    assert prompt_ids(make("nothing"), "") == []


@each_tokenizer
def test_a_passage_is_read_with_all_around_it(around: str) -> None:
    tokenizer = make(around)
    single, pair = AROUND[around]
    assert words(passage(tokenizer, "w1 w2")["input_ids"]) == single.replace("$A", "w1 w2")
    both = passage(tokenizer, "w1", "w2")
    assert words(both["input_ids"]) == pair.replace("$A", "w1").replace("$B", "w2")
    cut = passage(tokenizer, " ".join(["w1"] * 30), None, 8)["input_ids"]
    assert len(cut) == 8 and words(cut).split()[-1] == single.split()[-1].replace("$A", "w1")


def test_a_tokenizer_that_joins_turns_is_refused_for_all_of_them() -> None:
    tokenizer = make("nothing")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    turns = [*CHAT, Message("assistant", "w6")]
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in turns]}]
    chats = table("rows", enumerate(rows, 1))
    with pytest.raises(DataError, match="rows, row 1: the tokenizer joins the end of a turn.*turns='last'"):
        encode(chats, tokenizer, 64)
    assert len(encode(chats, tokenizer, 64, turns="last")) == 1


def test_a_template_is_given_what_it_knows_and_a_message_may_stay_open() -> None:
    tokenizer = make("nothing")
    tokenizer.chat_template = "{{ mood }} " + tokenizer.chat_template
    assert templated(tokenizer, CHAT, Template(more={"mood": "w9"})).startswith("w9 ")
    begun = (*CHAT, Message("assistant", "w6"))
    assert templated(tokenizer, begun, Template(answer_next=False, is_open=True)).endswith("w6")
    assert chat_ids(tokenizer, CHAT, given=Template(False)) == chat_ids(tokenizer, CHAT, answer_next=False)


def test_refusals() -> None:
    with pytest.raises(PromptError, match="has no chat template.*give a plain prompt"):
        prompt_ids(make_tokenizer(template=None), CHAT)
    refusing = make_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="the chat template refuses the messages: roles must alternate"):
        chat_ids(refusing, CHAT)
    assert ids_text(make_tokenizer(), [7, 8], len(WORDS)) == "w0 w1"
    for beyond in (len(WORDS), -1):
        with pytest.raises(PromptError, match=f"tokens: {beyond} is not a token; they are from 0 to {len(WORDS) - 1}"):
            ids_text(make_tokenizer(), [7, beyond], len(WORDS))


def test_the_form_of_prompts_is_said_with_a_word_for_the_likelier_one() -> None:
    chats, plain = make_tokenizer(), make_tokenizer(template=None)
    assert prompt_form_text(chats, TEMPLATE) == "prompts go through the chat template"
    assert prompt_form_text(plain, PLAIN) == "prompts are plain text"
    assert "chat=true is likelier" in prompt_form_text(chats, PLAIN)
