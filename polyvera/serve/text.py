"""Text: an answer's tokens as text, as far as it is certain, and the stop texts that end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Text:
    """One answer's text. What could still become a stop text, or a part of a character, is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer: Any = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop, self._longest = tuple(stop), max(map(len, stop), default=0)
        self._tokens: list[int] = []
        self._held = ""
        self._decoded = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with one more token; is_stopped afterwards where it reached a stop text."""
        self._tokens.append(token)
        new = self._stream.step(self._tokenizer, token) or ""
        self._decoded += new
        return self._released(new, is_last=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.is_stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        rest = whole[len(self._decoded) :] if whole.startswith(self._decoded) else ""
        self._decoded += rest
        return self._released(rest, is_last=True)

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
