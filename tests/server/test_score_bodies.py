"""The bodies of scores: pairs that go together, documents with or without more than their text."""

import pytest
from pydantic import ValidationError

from polyvera.server.score_bodies import RerankBody, ScoreBody


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", ["b", "c"]), (["a", "b"], ["c", "d"])])
def test_one_to_several_or_one_by_one(first: object, second: object) -> None:
    body = ScoreBody.model_validate({"model": "m", "text_1": first, "text_2": second})
    assert len(body.firsts) in (1, len(body.seconds))


@pytest.mark.parametrize(("first", "second"), [(["a", "b"], "c"), (["a", "b"], ["c", "d", "e"]), ([], "c")])
def test_what_does_not_go_together(first: object, second: object) -> None:
    with pytest.raises(ValidationError):
        ScoreBody.model_validate({"model": "m", "text_1": first, "text_2": second})


def test_documents_are_texts() -> None:
    body = RerankBody.model_validate({"model": "m", "query": "q", "documents": ["a", {"text": "b"}]})
    assert body.texts == ["a", "b"]
