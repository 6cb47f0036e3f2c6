"""The bodies of /v1/score and /v1/rerank, as vLLM, Jina and Cohere have them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from polyvera.server.fields import LIST, MAX_PROMPTS, OBJECT, TEXT, TEXT_OR_LIST, TEXT_OR_OBJECT, Count, ModelName, Text
from polyvera.server.neutral_fields import DOCUMENT, SCORE, VECTOR
from polyvera.server.request_body import RequestBody

Texts = Annotated[
    Annotated[Text, TEXT]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS - 1, fail_fast=True), LIST],
    TEXT_OR_LIST,
]


class ScoreBody(RequestBody):
    """/v1/score: how near texts are: one to each of several, or one by one."""

    neutral = SCORE

    model: ModelName
    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _pairs(self) -> ScoreBody:
        if len(self.firsts) not in (1, len(self.seconds)):
            raise ValueError(
                f"text_1 has {len(self.firsts)} texts and text_2 {len(self.seconds)}: give one, or as many as in text_2"
            )
        return self

    @property
    def firsts(self) -> list[str]:
        """One, or as many as seconds."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        """What they are compared with."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2


class DocumentBody(RequestBody):
    """A document."""

    neutral = DOCUMENT

    text: Text


Document = Annotated[Annotated[Text, TEXT] | Annotated[DocumentBody, OBJECT], TEXT_OR_OBJECT]


class RerankBody(RequestBody):
    """/v1/rerank: documents by how near they are to a query."""

    neutral = VECTOR

    model: ModelName
    query: Text
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_PROMPTS - 1)]
    top_n: Count | None = None
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """Of the documents."""
        return [one if isinstance(one, str) else one.text for one in self.documents]
