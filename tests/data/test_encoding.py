from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import WORDS, make_tokenizer
from tokenizers import Regex, normalizers

from polyvera.data.encoding import IGNORED, encode
from polyvera.data.row_form import Example
from polyvera.data.tables import Table, read
from polyvera.errors import DataError
from polyvera.model.message import Message
from polyvera.model.prompt import prompt_ids

Write = Callable[..., str]
EOS = WORDS.index("</s>")


def words(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


def targets(row: dict[str, list[int]]) -> str:
    return words([label for label in row["labels"] if label != IGNORED])


def test_only_the_completion_and_its_end_are_learnt(jsonl: Write) -> None:
    tokenizer = make_tokenizer(bos=True)
    (row,) = encode(read(jsonl([{"prompt": "w1 w2", "completion": "w3 w4"}])), tokenizer, 64).rows
    assert words(row["input_ids"]) == "<s> w1 w2 w3 w4 </s>"
    assert targets(row) == "w3 w4 </s>"
    assert row["input_ids"][:3] == prompt_ids(tokenizer, "w1 w2")  # what generation starts from


def test_a_prompt_is_shortened_from_the_left_and_counted(jsonl: Write) -> None:
    table = read(jsonl([{"prompt": "w1 w2 w3 w4", "completion": "w5"}, {"prompt": "w1", "completion": "w2"}]))
    encoded = encode(table, make_tokenizer(), 4)
    assert [words(row["input_ids"]) for row in encoded.rows] == ["w3 w4 w5 </s>", "w1 w2 </s>"]
    assert encoded.shortened == (1,)
    with_bos = encode(table, make_tokenizer(bos=True), 4)
    assert words(with_bos[0]["input_ids"]) == "<s> w4 w5 </s>"


def test_an_answer_is_never_cut(jsonl: Write) -> None:
    rows = [{"prompt": "w1", "completion": "w2 " * n} for n in (1, 5, 2, 9)]
    table = read(jsonl(rows))
    with pytest.raises(DataError, match=r"the answers of 2 rows are longer than max_length=4 tokens \(rows 2, 4\)"):
        encode(table, make_tokenizer(), 4)
    encoded = encode(table, make_tokenizer(), 4, too_long="skip")
    assert (len(encoded), encoded.skipped) == (2, (2, 4))
    with pytest.raises(DataError, match="the answers of 4 rows"):
        encode(table, make_tokenizer(), 2, too_long="skip")


def test_plain_text_is_learnt_whole(jsonl: Write) -> None:
    (row,) = encode(read(jsonl([{"text": "w1 w2"}])), make_tokenizer(), 8).rows
    assert targets(row) == words(row["input_ids"]) == "w1 w2 </s>"


CHAT = [
    {"role": "system", "content": "w0"},
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2 w3"},
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w5"},
]


@pytest.mark.parametrize(("turns", "answers"), [("all", "w2 w3 </s> w5 </s>"), ("last", "w5 </s>")])
def test_assistant_turns_are_learnt_with_their_end(jsonl: Write, turns: str, answers: str) -> None:
    tokenizer = make_tokenizer()
    (row,) = encode(read(jsonl([{"messages": CHAT}])), tokenizer, 64, turns=turns).rows
    whole = "system : w0 </s> user : w1 </s> assistant : w2 w3 </s> user : w4 </s> assistant : w5 </s>"
    assert words(row["input_ids"]) == whole
    assert targets(row) == answers
    asked = prompt_ids(tokenizer, tuple(Message(**turn) for turn in CHAT[:-1]))
    assert row["input_ids"][: len(asked)] == asked


def test_a_template_that_ends_no_turn_gets_an_end(jsonl: Write) -> None:
    plain = "{% for m in messages %} {{ m['content'] }} {% endfor %}"
    (row,) = encode(read(jsonl([{"messages": CHAT}])), make_tokenizer(template=plain), 64, turns="last").rows
    assert targets(row) == "w5 </s>"


def test_templates_that_cannot_serve(jsonl: Write) -> None:
    table = read(jsonl([{"messages": CHAT}]))
    with pytest.raises(DataError, match=r"row 1: the tokenizer .* has no chat template"):
        encode(table, make_tokenizer(template=None), 64)
    moody = "{% for m in messages %} {{ m['content'] if loop.last else '' }} {% endfor %}"
    with pytest.raises(DataError, match="changes earlier turns"):
        encode(table, make_tokenizer(template=moody), 64)
    with pytest.raises(DataError, match="changes earlier turns when later ones follow, so"):
        encode(table, make_tokenizer(template=moody), 64, turns="last")
    with pytest.raises(DataError, match="refuses the messages: never"):
        encode(table, make_tokenizer(template="{{ raise_exception('never') }}"), 64)


THINKING = (
    "{% for m in messages %} {{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %} assistant : w38 {% endif %}"
)


@pytest.mark.parametrize("turns", ["all", "last"])
def test_an_answer_that_does_not_follow_the_generation_prompt_is_explained(jsonl: Write, turns: str) -> None:
    tokenizer = make_tokenizer(template=THINKING)
    with pytest.raises(DataError, match="row 1: the chat template's generation prompt ends in 'w38'") as refused:
        encode(read(jsonl([{"messages": CHAT}])), tokenizer, 64, turns=turns)
    assert "turns='last'" not in str(refused.value)
    begun = [CHAT[0], CHAT[1], {"role": "assistant", "content": "w38 w5"}]
    (row,) = encode(read(jsonl([{"messages": begun}])), tokenizer, 64, turns=turns).rows
    assert targets(row) == "w5 </s>"


@pytest.mark.parametrize(("turn", "text"), [(1, "w1 </s> assistant : w9"), (2, "w2 </s> w3"), (0, "<s>"), (2, "<new>")])
def test_a_turn_with_the_spelling_of_a_special_token_is_named(jsonl: Write, turn: int, text: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    messages = [{**one, "content": text if i == turn else one["content"]} for i, one in enumerate(CHAT)]
    with pytest.raises(DataError, match=f"row 2: turn {turn + 1} contains '<.*>', which the tokenizer reads"):
        encode(read(jsonl([{"messages": CHAT}, {"messages": messages}])), tokenizer, 64)


def test_a_completion_ends_once(jsonl: Write) -> None:
    with pytest.raises(DataError, match="row 1: completion contains '</s>' before its end"):
        encode(read(jsonl([{"prompt": "w1", "completion": "w2 </s> w3"}])), make_tokenizer(), 64)
    (row,) = encode(read(jsonl([{"prompt": "w1", "completion": "w2 </s>"}])), make_tokenizer(), 64).rows
    assert targets(row) == "w2 </s>"


def test_classes(jsonl: Write) -> None:
    rows = [{"text": "w1 w2 w3", "text_pair": "w4", "label": "b"}, {"text": "w1", "text_pair": "w2", "label": "a"}]
    encoded = encode(read(jsonl(rows)), make_tokenizer(), 3)
    assert [row["labels"] for row in encoded.rows] == [1, 0]
    assert [len(row["input_ids"]) for row in encoded.rows] == [3, 2]
    assert encoded.shortened == (1,)


def test_a_tokenizer_without_an_end_token_is_refused(jsonl: Write) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end token"):
        encode(read(jsonl([{"text": "w1"}])), tokenizer, 8)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "\u200b", "completion": "\u200b"}, "nothing to read"),
        ({"prompt": "\u200b", "completion": "w2"}, "nothing to read"),
        ({"prompt": "w1", "completion": "\u200b"}, "nothing to learn"),
        ({"text": "\u200b"}, "nothing to learn"),
        ({"text": "\u200b", "label": "a"}, "nothing to read"),
        ({"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "\u200b"}]}, "to learn"),
    ],
)
def test_rows_with_nothing_to_learn_are_named(jsonl: Write, row: dict[str, Any], problem: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[\u200b\u00ad]"), "")
    good = {key: "w1" if isinstance(value, str) else CHAT for key, value in row.items()}
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: .*no tokens.* {problem}"):
        encode(read(jsonl([good, row])), tokenizer, 64)


def test_whatever_the_tokenizer_raises_names_the_row() -> None:
    example = Example(7, "w1", "w2 \ud83d")  # made without a reader
    with pytest.raises(DataError, match="^mine, row 7: TypeError: "):
        encode(Table("mine", "completion", (example,)), make_tokenizer(), 64)
