"""Scores are the cosines of the vectors that /v1/embeddings gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoder import make_bert, make_encoder_adapter
from tiny_serve import make_tokenizer
from tiny_server import Served, fronted

from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.limits import Limits
from polyvera.model.load import Base
from polyvera.server.routes.scores import cosines

DOCUMENTS = ["the true thing", "in", "err", "the thing in the tree is true"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    adapter = make_encoder_adapter(make_bert(), AdapterSpec(rank=4), 0, ())
    base = Base(make_bert(), make_tokenizer())
    with fronted(tmp_path_factory.mktemp("scores"), base, {"acme/plain": adapter}, Limits(max_rows=4)) as found:
        yield found


def post(at: Served, path: str, **given: Any) -> dict[str, Any]:
    answer = at.http().post(path, json={"model": "acme/plain", **given})
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(at: Served, query: str) -> list[float]:
    found = at.openai().embeddings.create(model="acme/plain", input=[query, *DOCUMENTS], encoding_format="float")
    vectors = np.array([one.embedding for one in found.data])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors[1:] @ vectors[0]).tolist()


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_by_how_near_they_are(encoder: Served, path: str) -> None:
    found = post(encoder, path, query="the true", documents=DOCUMENTS)
    right = expected(encoder, "the true")
    assert [one["index"] for one in found["results"]] == sorted(range(4), key=lambda i: -right[i])
    for one in found["results"]:
        assert one["relevance_score"] == pytest.approx(right[one["index"]], abs=1e-4)
        assert one["document"]["text"] == DOCUMENTS[one["index"]]
    few = post(encoder, path, query="the true", documents=DOCUMENTS, top_n=2, return_documents=False)
    assert few["results"] == [{k: v for k, v in one.items() if k != "document"} for one in found["results"][:2]]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_pairs_are_scored(encoder: Served, path: str) -> None:
    found = post(encoder, path, text_1="the true", text_2=DOCUMENTS)
    assert [one["score"] for one in found["data"]] == pytest.approx(expected(encoder, "the true"), abs=1e-4)
    same = post(encoder, path, text_1=DOCUMENTS, text_2=DOCUMENTS)
    assert [one["score"] for one in same["data"]] == pytest.approx([1.0] * 4, abs=1e-4)
    assert same["usage"]["total_tokens"] > 0 and same["model"] == "acme/plain@1"


def test_dimensions_are_the_models_own(encoder: Served) -> None:
    width = len(encoder.openai().embeddings.create(model="acme/plain", input="x").data[0].embedding)
    assert (
        len(encoder.openai().embeddings.create(model="acme/plain", input="x", dimensions=width).data[0].embedding)
        == width
    )
    refused = encoder.http().post("/v1/embeddings", json={"model": "acme/plain", "input": "x", "dimensions": width - 1})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "dimensions"
    cut = post(encoder, "/v1/embeddings", input="the true thing", truncate_prompt_tokens=2)
    assert cut["usage"]["prompt_tokens"] == 2
    long = {"model": "acme/plain", "input": "in the " * 500}
    assert encoder.http().post("/v1/embeddings", json=long).status_code == 400
    assert encoder.http().post("/v1/embeddings", json=long | {"truncate_prompt_tokens": -1}).status_code == 200


def test_cosines() -> None:
    vectors = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert cosines(vectors[:1], vectors) == pytest.approx([1.0, 0.0, 0.5**0.5])
