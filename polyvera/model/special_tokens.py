"""SpecialTokens: what stands in a message is text, whatever it spells; its template alone writes special tokens.

A spelling inside a text is cut by a seam before the template sees it, and the seam goes once special tokens have been
found: what is left is encoded as any other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from polyvera.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

SEAM = "\ufdd0"  # Unicode keeps it for a program's own use: no text has it
MARKUP = re.compile(r"[<\[].+[>\]]")  # else a template's words; some tokenizers add runs of spaces as tokens


class SpecialTokens:
    """Of one tokenizer.

    In an answer those count that the tokenizer calls special. In all other texts those do as well that its chat
    template writes, such as <think> and <tool_call>, which answers write for themselves.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Any = tokenizer
        self._in_answers, added = _spellings(tokenizer)
        self._in_texts = self._in_answers | added
        self._patterns = {True: _pattern(self._in_answers), False: _pattern(self._in_texts)}
        self._lock = Lock()
        self._backend: Any = None
        self._unwritable: frozenset[str] = frozenset()

    def cut(self, text: str, *, is_answer: bool) -> str:
        """The text with a seam in each spelling. Raises PromptError for one that the tokenizer cannot write as text."""
        if SEAM in text:
            raise PromptError("a text contains U+FDD0, which Unicode keeps from texts: remove it")

        def seam(match: re.Match[str]) -> str:
            self._check(match[0] + match[match.lastindex or 0])
            return match[0] + SEAM

        return self._patterns[is_answer].sub(seam, text)

    def ids(self, text: str) -> list[int]:
        """The tokens of a template's text with seams, with nothing around it."""
        if self._tokenizer.is_fast:
            return list(self._encoder().encode(text, add_special_tokens=False).ids)
        parts = re.split("(" + "|".join(map(re.escape, _longest_first(self._in_texts))) + ")", text)
        return [i for n, part in enumerate(parts) for i in self._slow_ids(part, is_text=n % 2 == 0)]

    def _slow_ids(self, part: str, *, is_text: bool) -> list[int]:
        bare = part.replace(SEAM, "")
        return list(self._tokenizer(bare, add_special_tokens=False, split_special_tokens=is_text)["input_ids"])

    def _check(self, spelling: str) -> None:
        if self._tokenizer.is_fast:
            self._encoder()
        if spelling in self._unwritable:
            raise PromptError(
                f"a text contains {spelling!r}, which the tokenizer reads as a special token: write it otherwise, or "
                "remove it"
            )

    def _encoder(self) -> Any:
        """Made once: it is a copy of the whole vocabulary."""
        with self._lock:
            if self._backend is None:
                tries = [_seamless(self._tokenizer, in_words) for in_words in (False, True)]
                left = [frozenset(s for s in self._in_texts if self._is_special(one, s)) for one in tries]
                self._backend, self._unwritable = (tries[0], left[0]) if not left[0] else (tries[1], left[1])
            return self._backend

    def _is_special(self, backend: Any, spelling: str) -> bool:
        found = backend.encode(spelling[0] + SEAM + spelling[1:], add_special_tokens=False).ids
        return not set(found).isdisjoint(self._tokenizer.all_special_ids)


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Those of a tokenizer as it is now."""
    state = (len(tokenizer), tuple(tokenizer.all_special_tokens), repr(tokenizer.chat_template))
    known = _kept.get(tokenizer)
    if known is None or known[0] != state:
        known = _kept[tokenizer] = (state, SpecialTokens(tokenizer))
    return known[1]


_kept: WeakKeyDictionary[Any, tuple[Any, SpecialTokens]] = WeakKeyDictionary()


def _spellings(tokenizer: Tokenizer) -> tuple[frozenset[str], frozenset[str]]:
    """(special tokens, other added tokens that the chat template writes), none of a single character."""
    added: Any = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*map(str, tokenizer.all_special_tokens), *(str(one.content) for one in added if one.special)}
    template = str(tokenizer.chat_template)
    others = {str(one.content) for one in added if MARKUP.fullmatch(str(one.content)) and str(one.content) in template}
    return frozenset(s for s in special if len(s) > 1), frozenset(others - special)


def _longest_first(spellings: Iterable[str]) -> Sequence[str]:
    return sorted(spellings, key=lambda one: (-len(one), one))


def _pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    """The first character of each spelling, which is looked at beyond it, so that none hides another."""
    by_first: dict[str, list[str]] = {}
    for one in _longest_first(spellings):
        by_first.setdefault(one[0], []).append(re.escape(one[1:]))
    parts = [f"{re.escape(first)}(?=({'|'.join(rest)}))" for first, rest in by_first.items()]
    return re.compile("|".join(parts) or r"(?!)")


def _seamless(tokenizer: Any, in_words: bool) -> Any:
    """The tokenizer's backend, which drops seams once it has found special tokens.

    in_words: words that a seam cuts stay cut, where the vocabulary itself has a spelling as one of its words.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

    copy: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    # A token that is looked for in the normalized text would be found once the seam is gone.
    given = [one for one in tokenizer.added_tokens_decoder.values() if one.normalized and one.special]
    copy.add_special_tokens(
        [AddedToken(one.content, lstrip=one.lstrip, rstrip=one.rstrip, normalized=False) for one in given]
    )
    if in_words:
        cut = pre_tokenizers.Split(SEAM, "removed")
        copy.pre_tokenizer = cut if copy.pre_tokenizer is None else pre_tokenizers.Sequence([cut, copy.pre_tokenizer])
    else:
        drop = normalizers.Replace(SEAM, "")
        copy.normalizer = drop if copy.normalizer is None else normalizers.Sequence([drop, copy.normalizer])
    return copy
