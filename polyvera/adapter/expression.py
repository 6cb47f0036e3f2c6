"""Regular expressions that came with a file or a request, matched within a time: one that explodes is refused."""

from __future__ import annotations

from time import monotonic
from typing import Any

from polyvera.errors import PolyveraError

MAX_CHARS = 4096
LIMIT_S = 1.0


class Expressions:
    """The expressions of one file or request, in the standard library's syntax: together at most LIMIT_S of CPU time.

    refusal: what is raised for one that is too long, is none, or takes too long.
    """

    def __init__(self, refusal: type[PolyveraError]) -> None:
        self._refusal, self._left_s = refusal, LIMIT_S
        self._compiled: dict[str, Any] = {}

    def match(self, what: str, expression: str, name: str) -> Any:
        """The match from the beginning of a name, or None. what: the key that the expression came with."""
        return self._within(what, expression, name, "match")

    def fullmatch(self, what: str, expression: str, name: str) -> Any:
        """The match of a whole name, or None."""
        return self._within(what, expression, name, "fullmatch")

    def _within(self, what: str, expression: str, name: str, how: str) -> Any:
        begun = monotonic()
        try:
            if self._left_s <= 0:
                raise TimeoutError
            match = getattr(self._pattern(what, expression), how)
            return match(name, timeout=self._left_s, concurrent=True)
        except TimeoutError:
            raise self._refusal(
                f"{what}={expression[:200]!r} takes more than {LIMIT_S:g} s to match: write it without repetitions "
                "inside repetitions, or name the layers"
            ) from None
        finally:
            self._left_s -= monotonic() - begun

    def _pattern(self, what: str, expression: str) -> Any:
        import regex  # it can be given a time, which the standard library's cannot

        if expression not in self._compiled:
            if len(expression) > MAX_CHARS:
                raise self._refusal(f"{what}: an expression has {len(expression)} characters; at most {MAX_CHARS}")
            try:
                self._compiled[expression] = regex.compile(expression, regex.VERSION0)
            except (regex.error, RecursionError, OverflowError) as error:
                raise self._refusal(f"{what}={expression!r} is not a valid regular expression: {error}") from error
        return self._compiled[expression]
