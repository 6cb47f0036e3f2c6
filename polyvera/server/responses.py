"""ResponseShape: an answer in the words of OpenAI's two endpoints. page_of: a page of one of its lists."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polyvera.engine.generation.request import Token
from polyvera.model.token_bytes import Spelling, TokenBytes
from polyvera.server.tool_parser import ToolCall

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of an answer. offset: characters before it. top: the alternatives, likeliest first."""

    token: Token
    spelling: Spelling
    offset: int
    top: Sequence[tuple[int, Spelling, float]]


class EntryWriter:
    """Makes the entries of one answer's tokens as its text comes, so that their bytes are the text's.

    at: characters before the answer. A token waits for its text, and what a stop text cuts off is in no entry.
    """

    def __init__(self, token_bytes: TokenBytes, at: int = 0) -> None:
        self._token_bytes, self._at, self._num_chars = token_bytes, at, at
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._is_first = True
        self._open: list[TokenEntry] = []  # whole characters, so far
        self._waiting: list[tuple[int, list[TokenEntry]]] = []  # (characters up to their end, entries)

    def add(self, tokens: Sequence[Token], text: str, *, is_last: bool = False) -> list[TokenEntry]:
        """The entries that the next tokens and the next text complete."""
        self._num_chars += len(text)
        for token in tokens:
            self._take(token)
        if is_last and self._open:
            self._close(len(self._decoder.decode(b"", True)))
        done = [entries for end, entries in self._waiting if end <= self._num_chars]
        cut = [self._clipped(entries) for _, entries in self._waiting[len(done) :]] if is_last else []
        self._waiting = self._waiting[len(done) :]
        return [entry for entries in (*done, *cut) for entry in entries]

    def whole(self, tokens: Sequence[Token]) -> list[TokenEntry]:
        """The entries of tokens whose text is that of their bytes."""
        for token in tokens:
            self._take(token)
        if self._open:
            self._close(len(self._decoder.decode(b"", True)))
        self._num_chars = self._at
        return self.add((), "")

    def _take(self, token: Token) -> None:
        of, is_first = self._token_bytes.of, self._is_first
        spelling = of(token.id, is_first=is_first)
        top = [(i, of(i, is_first=is_first), logprob) for i, logprob in token.top]
        self._is_first = is_first and not spelling.data
        self._open.append(TokenEntry(token, spelling, self._at, top))
        num_chars = len(self._decoder.decode(spelling.data))
        if not self._decoder.getstate()[0]:
            self._close(num_chars)
        else:
            self._at += num_chars

    def _close(self, num_chars: int) -> None:
        self._at += num_chars
        self._waiting.append((self._at, self._open))
        self._open = []

    def _clipped(self, entries: list[TokenEntry]) -> list[TokenEntry]:
        """Those of a character or a token of several that the text still has, with the bytes that it has."""
        num_kept = self._num_chars - entries[0].offset
        whole = b"".join(entry.spelling.data for entry in entries).decode("utf-8", "replace")
        left, found = len(whole[: max(0, num_kept)].encode()), []
        for entry in entries:
            data = entry.spelling.data
            if left > 0 or not data:
                found.append(replace(entry, spelling=Spelling(entry.spelling.name, data[:left])))
            left -= len(data)
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """What a choice has, or what a part of a stream adds to it. at: the number of its first call."""

    text: str
    calls: Sequence[ToolCall] = ()
    logprobs: Json | None = None
    at: int = 0


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """How one endpoint words it. prefix: of ids. kind, part_kind: the object of the whole and of a part of a stream.

    choice(whole), delta(part, is_first): the fields of a choice. logprobs(entries).
    """

    prefix: str
    kind: str
    part_kind: str
    choice: Callable[[Part], Json]
    delta: Callable[[Part, bool], Json]
    logprobs: Callable[[Sequence[TokenEntry]], Json]


def page_of(items: Sequence[Json], *, has_more: bool) -> Json:
    """A page of a list, as OpenAI's clients go through them."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [*items], "has_more": has_more, **ends}


def call_body(call: ToolCall) -> Json:
    """A call in a message of a chat."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_choice(whole: Part) -> Json:
    calls = [call_body(call) for call in whole.calls]
    said = {"content": whole.text or None, "refusal": None, "tool_calls": calls}
    message = said if calls else {"content": whole.text, "refusal": None}
    return {"message": {"role": "assistant", **message}, "logprobs": whole.logprobs}


def _chat_delta(part: Part, is_first: bool) -> Json:
    calls = [{"index": part.at + n, **call_body(call)} for n, call in enumerate(part.calls)]
    said: Json = {"content": part.text} if part.text or not calls else {}
    called: Json = {"tool_calls": calls} if calls else {}
    return {"delta": {**({"role": "assistant"} if is_first else {}), **said, **called}, "logprobs": part.logprobs}


def _chat_logprobs(entries: Sequence[TokenEntry]) -> Json:
    def one(spelling: Spelling, logprob: float | None) -> Json:
        return {"token": spelling.name, "logprob": logprob, "bytes": list(spelling.data)}

    content = [
        one(e.spelling, e.token.logprob) | {"top_logprobs": [one(s, logprob) for _, s, logprob in e.top]}
        for e in entries
    ]
    return {"content": content, "refusal": None}


def _text_choice(whole: Part) -> Json:
    return {"text": whole.text, "logprobs": whole.logprobs}


def _text_delta(part: Part, is_first: bool) -> Json:
    return _text_choice(part)


def _text_logprobs(entries: Sequence[TokenEntry]) -> Json:
    return {
        "tokens": [e.spelling.name for e in entries],
        "token_logprobs": [e.token.logprob for e in entries],
        "top_logprobs": [_by_name(e) for e in entries],
        "text_offset": [e.offset for e in entries],
    }


def _by_name(entry: TokenEntry) -> dict[str, float] | None:
    """The alternatives and the token itself, each in an entry of its own; None where nothing is known of it."""
    if entry.token.logprob is None:
        return None
    own = (entry.token.id, entry.spelling, entry.token.logprob)
    found: dict[str, float] = {}
    for token, (name, logprob) in {i: (s.name, logprob) for i, s, logprob in (*entry.top, own)}.items():
        found[f"token_id:{token}" if name in found else name] = logprob
    return found


CHAT = ResponseShape("chatcmpl-", "chat.completion", "chat.completion.chunk", _chat_choice, _chat_delta, _chat_logprobs)
TEXT = ResponseShape("cmpl-", "text_completion", "text_completion", _text_choice, _text_delta, _text_logprobs)
