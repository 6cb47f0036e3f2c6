"""ResponseShape: an answer in the words of OpenAI's two endpoints. page_of: a page of one of its lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polyvera.engine.generation.request import Token

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """How one endpoint words it. prefix: of ids. kind, part_kind: the object of the whole and of a part of a stream.

    choice(text, logprobs), part(text, logprobs, is_first): the fields of a choice. logprobs(tokens, text of a token,
    characters before them).
    """

    prefix: str
    kind: str
    part_kind: str
    choice: Callable[[str, Json | None], Json]
    part: Callable[[str, Json | None, bool], Json]
    logprobs: Callable[[Sequence[Token], Callable[[int], str], int], Json]


def page_of(items: Sequence[Json], *, has_more: bool) -> Json:
    """A page of a list, as OpenAI's clients go through them."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [*items], "has_more": has_more, **ends}


def _chat_choice(text: str, logprobs: Json | None) -> Json:
    return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}


def _chat_part(text: str, logprobs: Json | None, is_first: bool) -> Json:
    return {"delta": {"role": "assistant", "content": text} if is_first else {"content": text}, "logprobs": logprobs}


def _chat_logprobs(tokens: Sequence[Token], text: Callable[[int], str], at: int) -> Json:
    def one(token: int, logprob: float | None) -> Json:
        said = text(token)
        return {"token": said, "logprob": logprob, "bytes": list(said.encode())}

    return {
        "content": [one(t.id, t.logprob) | {"top_logprobs": [one(*other) for other in t.top]} for t in tokens],
        "refusal": None,
    }


def _text_choice(text: str, logprobs: Json | None) -> Json:
    return {"text": text, "logprobs": logprobs}


def _text_part(text: str, logprobs: Json | None, is_first: bool) -> Json:
    return {"text": text, "logprobs": logprobs}


def _text_logprobs(tokens: Sequence[Token], text: Callable[[int], str], at: int) -> Json:
    said = [text(token.id) for token in tokens]
    offsets = [at + sum(map(len, said[:i])) for i in range(len(said))]
    top = [{text(token): logprob for token, logprob in t.top} for t in tokens]
    return {
        "tokens": said,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top,
        "text_offset": offsets,
    }


CHAT = ResponseShape("chatcmpl-", "chat.completion", "chat.completion.chunk", _chat_choice, _chat_part, _chat_logprobs)
TEXT = ResponseShape("cmpl-", "text_completion", "text_completion", _text_choice, _text_part, _text_logprobs)
