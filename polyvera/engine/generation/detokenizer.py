"""Detokenizer: an answer's tokens as text, as far as it is certain, and the stop texts that end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BROKEN = "\ufffd"


class Detokenizer:
    """One answer's text. What could still become a stop text, or a part of a character, is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer: Any = tokenizer.backend_tokenizer
        self._stop, self._longest = tuple(stop), max(map(len, stop), default=0)
        self._tokens: list[int] = []
        self._held = ""
        self._before = ""  # the text of the tokens from _first to _last, which is decoded already
        self._first = self._last = 0
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with one more token; is_stopped afterwards where it reached a stop text."""
        self._tokens.append(token)
        return self._released(self._decoded(is_last=False), is_last=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.is_stopped:
            return ""
        return self._released(self._decoded(is_last=True), is_last=True)

    def _decoded(self, is_last: bool) -> str:
        """What the tokens since the last text add to it, '' where that may be a part of a character.

        tokenizers' own DecodeStream raises where bytes that are no text change the text before them.
        """
        now = self._decode(self._first)
        if len(now) <= len(self._before) or (now.endswith(BROKEN) and not is_last):
            return ""
        new = now[len(self._before) :]
        self._first, self._last = self._last, len(self._tokens)
        self._before = self._decode(self._first)
        return new

    def _decode(self, first: int) -> str:
        return self._tokenizer.decode(self._tokens[first:], skip_special_tokens=True)  # type: ignore[no-any-return]

    def _released(self, new: str, is_last: bool) -> str:
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            self._held, out = "", self._held[: min(found)]
            return out
        kept = 0 if is_last else self._num_open()
        cut = len(self._held) - kept
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _num_open(self) -> int:
        """The longest end of the held text with which a stop text begins."""
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
