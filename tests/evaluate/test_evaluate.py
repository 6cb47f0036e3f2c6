from collections.abc import Callable
from math import exp
from typing import Any

import pytest
import torch
from test_generate import adapter
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.row_form import Example
from polyvera.data.tables import read
from polyvera.errors import DataError
from polyvera.evaluate.evaluate import Evaluation, evaluate, is_right, rouge_l
from polyvera.evaluate.metrics import macro_f1, majority

Write = Callable[..., str]


def answered(pairs: list[tuple[str, str]], kind: str = "label") -> Evaluation:
    examples = tuple(Example(i, "q", right) for i, (right, _) in enumerate(pairs))
    return Evaluation(kind, examples, (0,) * len(pairs), tuple(answer for _, answer in pairs))


def test_classes_are_scored() -> None:
    scores = answered([("a", "a"), ("a", "b"), ("b", "b"), ("c", "b")]).scores
    assert scores["accuracy"] == scores["majority"] == 0.5
    # a: 2·1/(1+2), b: 2·1/(3+1), c: 0
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(["a", "b"], ["a", "b"]) == 1.0


def test_an_answer_is_right_but_for_space_and_may_be_one_of_several() -> None:
    example = Example(1, "q", "Yes", refs=("Yes", "Yeah"))
    assert is_right(" Yes\n", example) and is_right("Yeah", example)
    assert not is_right("yes", example) and not is_right("Yes.", example)
    assert majority([example, Example(2, "q", "Yeah"), Example(3, "q", "No")]) == 2 / 3


def test_rouge_l_takes_the_best_right_answer() -> None:
    example = Example(1, "q", "the cat sat", refs=("the cat sat", "a dog ran off"))
    assert rouge_l(["a dog sat"], [example])["rouge_l"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


@pytest.mark.parametrize("make", [lambda i: {"text": f"w{i}", "label": "ab"[i % 2]}, lambda i: {"text": f"w{i} w2"}])
def test_tokens_of_an_answer_are_not_asked_of_rows_without_prompts(jsonl: Write, make: Callable[[int], Any]) -> None:
    table = read(jsonl([make(i) for i in range(4)]))
    model = make_classifier() if table.labels else make_model()
    with pytest.raises(DataError, match="max_new_tokens=5 has no effect"):
        evaluate(model, make_tokenizer(), table, max_new_tokens=5)


def test_tokens_are_scored_as_the_models_own_loss(jsonl: Write) -> None:
    model, table = make_model(), read(jsonl(counting_rows(5)))
    scores = evaluate(model, make_tokenizer(), table, batch_size=2).scores
    tokenizer = make_tokenizer()
    total, right, count = 0.0, 0, 0
    for example in table.examples:
        start, whole = (
            tokenizer(example.prompt)["input_ids"],
            tokenizer(f"{example.prompt} {example.answer} </s>")["input_ids"],
        )
        labels = torch.tensor([[-100] * len(start) + whole[len(start) :]])
        out = model(torch.tensor([whole]), labels=labels)
        num = len(whole) - len(start)
        total, count = total + float(out.loss.detach()) * num, count + num
        right += int((out.logits[0, :-1].argmax(-1) == labels[0, 1:]).sum())
    assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(exp(total / count), rel=1e-4)
    assert scores["token_accuracy"] == right / count


def test_rows_of_several_adapters_in_one_batch_score_as_each_adapter_alone(jsonl: Write) -> None:
    model, table = make_model(), read(jsonl(counting_rows(len(METHODS) + 2)))
    slots = [0, *load(model, [adapter(method, seed) for seed, method in enumerate(METHODS)])]
    rows = [slots[i % len(slots)] for i in range(len(table))]
    mixed = evaluate(model, make_tokenizer(), table, rows, batch_size=5)
    for slot in slots:
        alone = evaluate(model, make_tokenizer(), table, slot, batch_size=3)
        mine = [i for i, s in enumerate(rows) if s == slot]
        assert [mixed.answers[i] for i in mine] == [alone.answers[i] for i in mine]
        for i in mine:
            assert mixed.counts[i].loss == pytest.approx(alone.counts[i].loss, rel=1e-4)
            assert mixed.counts[i].right == alone.counts[i].right
        assert set(mixed.of_slot(slot)) == set(mixed.scores)
    with pytest.raises(DataError, match="no row was answered by slot 99"):
        mixed.of_slot(99)


def classified(seed: int) -> Any:
    model, spec = make_classifier(), AdapterSpec("vera", rank=4, targets=("query",), head=("classifier",))
    bank = inject(model, spec)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    return extract(bank, 1, model)


def test_classifiers_are_mixed_too(classes: str) -> None:
    model, table = make_classifier(), read(classes)
    slots = load(model, [classified(1), classified(2)])
    rows = [slots[i % 2] for i in range(len(table))]
    mixed = evaluate(model, make_tokenizer(), table, rows)
    for k, slot in enumerate(slots):
        alone = evaluate(model, make_tokenizer(), table, slot)
        assert mixed.answers[k::2] == alone.answers[k::2]
    assert set(mixed.answers) <= {"even", "odd"}


def test_label_names_come_from_the_config_of_the_model(jsonl: Write) -> None:
    model = make_classifier(3)
    model.config.id2label = {0: "c", 1: "b", 2: "a"}
    table = read(jsonl([{"text": "w1", "label": "a"}, {"text": "w2", "label": "b"}]))
    logits = model(torch.tensor([make_tokenizer()("w1")["input_ids"]])).logits
    assert evaluate(model, make_tokenizer(), table).answers[0] == "cba"[int(logits.argmax())]
    with pytest.raises(DataError, match="has the label 'z'; the model knows c, b, a"):
        evaluate(model, make_tokenizer(), read(jsonl([{"text": "w1", "label": "z"}])))


def test_plain_text_has_token_scores_alone(jsonl: Write) -> None:
    scores = evaluate(make_model(), make_tokenizer(), read(jsonl([{"text": "w1 " * 62}]))).scores
    assert set(scores) == {"loss", "perplexity", "token_accuracy"}


def test_a_row_that_the_model_cannot_read_whole_is_refused(jsonl: Write) -> None:
    table = read(jsonl([{"prompt": "w1 " * 62, "completion": "w2 w3"}]))
    with pytest.raises(DataError, match="more than the model's 64 tokens"):
        evaluate(make_model(), make_tokenizer(), table)
