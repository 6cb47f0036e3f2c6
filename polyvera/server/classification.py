"""What /v1/classify says of a text, by the answer that its task has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.engine.embedding.request import Classes
from polyvera.errors import SamplingError
from polyvera.evaluate.entities import spans
from polyvera.evaluate.evaluate import tags_of_words
from polyvera.model.answer import Meaning
from polyvera.model.prompt import passage, words_passage
from polyvera.model.task import EACH_TOKEN
from polyvera.server.prompt_tokens import check_chars, check_tokens

WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class ClassifiedText:
    """A text that is asked about. tokens: what the model reads. words: of each token, where words are labelled."""

    text: str
    tokens: list[int]
    words: tuple[int | None, ...] = ()


def classified_text(
    tokenizer: Any, prompt: str | list[int], pair: str | None, meaning: Meaning, max_length: int | None = None
) -> ClassifiedText:
    """A prompt as its task reads it, cut to max_length tokens.

    Raises SamplingError for tokens, or two texts, where words are labelled.
    """
    if meaning.row.predicts != EACH_TOKEN:
        if isinstance(prompt, list):
            return ClassifiedText("", prompt[:max_length])
        return ClassifiedText(prompt, passage(tokenizer, prompt, pair, max_length)["input_ids"])
    if isinstance(prompt, list) or pair is not None:
        raise SamplingError(
            "input: this model labels words, so it takes one text as a string, not tokens or a pair", "input"
        )
    row, words = words_passage(tokenizer, WORD.findall(prompt), max_length)
    return ClassifiedText(prompt, row["input_ids"], tuple(words))


def classified_texts(
    tokenizer: Any,
    prompts: Sequence[str | list[int]],
    pairs: Sequence[str | None],
    meaning: Meaning,
    max_context: int,
    cut: int | None = None,
) -> list[ClassifiedText]:
    """Prompts, each with its second text if it has one, as their task reads them. cut: as max_length.

    Raises as classified_text(), and ContextLengthError.
    """
    check_chars([text for text in (*prompts, *pairs) if isinstance(text, str)], max_context, "input")
    given = zip(prompts, pairs, strict=True)
    texts = [classified_text(tokenizer, prompt, pair, meaning, cut) for prompt, pair in given]
    check_tokens(max(len(text.tokens) for text in texts), 0, max_context, "input")
    return texts


def worded(found: Classes, texts: Sequence[ClassifiedText]) -> list[dict[str, Any]]:
    """One entry of an answer's data for each text."""
    meaning, scores = found.meaning, found.probs
    each = meaning.row.predicts == EACH_TOKEN
    parts = torch.split(scores, [len(text.tokens) for text in texts]) if each else scores
    say = SAYS[meaning.row.answer]
    return [{"index": i, **say(meaning, part, text)} for i, (part, text) in enumerate(zip(parts, texts, strict=True))]


def cosines(vectors: Tensor) -> list[dict[str, Any]]:
    """One entry for each pair of texts. vectors: of all first texts, then of all second ones."""
    first, second = F.normalize(vectors, dim=-1).chunk(2)
    scores = (first * second).sum(-1).tolist()
    return [{"index": i, "label": "score", "score": score} for i, score in enumerate(scores)]


def _label(meaning: Meaning, scores: Tensor, text: ClassifiedText) -> dict[str, Any]:
    return {"label": meaning.answer(scores), "probs": scores.tolist(), "num_classes": len(scores)}


def _labels(meaning: Meaning, scores: Tensor, text: ClassifiedText) -> dict[str, Any]:
    known = {"labels": list(meaning.answer(scores)), "threshold": meaning.threshold}
    return known | {"probs": scores.tolist(), "num_classes": len(scores)}


def _number(meaning: Meaning, scores: Tensor, text: ClassifiedText) -> dict[str, Any]:
    return {"label": meaning.labels[0], "score": meaning.answer(scores)}


def _tags(meaning: Meaning, scores: Tensor, text: ClassifiedText) -> dict[str, Any]:
    """A tag for each word, and the entities that they name with their characters in the text."""
    places = [found.span() for found in WORD.finditer(text.text)]
    first = [i for i, word in enumerate(text.words) if word is not None and word not in text.words[:i]]
    own = scores[first]
    tags = tags_of_words(meaning.answer(own), text.words, len(places))
    sure = dict(zip((text.words[i] for i in first), own.amax(-1).tolist(), strict=True))
    words = [
        {"text": text.text[begin:end], "label": tag, "score": sure.get(i, 0.0)}
        for i, ((begin, end), tag) in enumerate(zip(places, tags, strict=True))
    ]
    entities = [
        {"label": e.label, "start": start, "end": end, "text": text.text[start:end]}
        for e, start, end in spans(tags, places)
    ]
    return {"words": words, "entities": entities}


SAYS: Mapping[str, Callable[[Meaning, Tensor, ClassifiedText], dict[str, Any]]] = MappingProxyType(
    {"label": _label, "labels": _labels, "number": _number, "tags": _tags}
)
