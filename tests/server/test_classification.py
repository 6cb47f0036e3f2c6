import pytest
import torch
from tiny_models import make_tokenizer

from polyvera.engine.embedding.request import Classes
from polyvera.errors import SamplingError
from polyvera.model.answer import Meaning
from polyvera.model.task import LABEL, MULTI_LABEL, REGRESSION, TOKEN_LABEL
from polyvera.server.classification import classified_text, cosines, worded

TAGS = Meaning(TOKEN_LABEL, ("O", "B-PER", "I-PER"))


def test_each_word_has_a_label_and_each_entity_its_characters() -> None:
    text = classified_text(make_tokenizer(), " w1  w2 w3", None, TAGS)
    assert text.tokens == make_tokenizer()("w1 w2 w3").input_ids and list(text.words) == [0, 1, 2]
    probs = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.9, 0.0, 0.1]])
    [found] = worded(Classes(TAGS.labels, probs, TOKEN_LABEL), [text])
    assert [(w["text"], w["label"]) for w in found["words"]] == [("w1", "B-PER"), ("w2", "I-PER"), ("w3", "O")]
    assert [w["score"] for w in found["words"]] == pytest.approx([0.7, 0.6, 0.9])
    assert found["entities"] == [{"label": "PER", "start": 1, "end": 7, "text": "w1  w2"}]


def test_whole_texts_have_labels_or_a_number() -> None:
    text = classified_text(make_tokenizer(), "w1", None, Meaning(LABEL, ("a", "b")))
    [one] = worded(Classes(("a", "b"), torch.tensor([[0.25, 0.75]])), [text])
    assert one == {"index": 0, "label": "b", "probs": [0.25, 0.75], "num_classes": 2}
    [several] = worded(Classes(("a", "b"), torch.tensor([[0.5, 0.75]]), MULTI_LABEL, 0.6), [text])
    assert several == {"index": 0, "labels": ["b"], "threshold": 0.6, "probs": [0.5, 0.75], "num_classes": 2}
    [number] = worded(Classes(("score",), torch.tensor([[1.5]]), REGRESSION), [text])
    assert number == {"index": 0, "label": "score", "score": 1.5}


def test_two_texts_have_their_cosine() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    assert [one["score"] for one in cosines(vectors)] == pytest.approx([0.6, 1.0])


def test_words_are_found_in_one_text_alone() -> None:
    for prompt, pair in (([5, 6], None), ("w1", "w2")):
        with pytest.raises(SamplingError, match="this model labels words, so it takes one text"):
            classified_text(make_tokenizer(), prompt, pair, TAGS)
