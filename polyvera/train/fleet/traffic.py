"""Traffic: what went through the model in a fleet's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Traffic:
    """What went through the model in training: rounds, batches, rows, tokens that count and those that only pad."""

    rounds: int = 0
    batches: int = 0
    rows: int = 0
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0

    def count(self, lengths: Sequence[int]) -> None:
        """Counts one batch by the tokens of each of its rows."""
        tokens = sum(lengths)
        self.batches += 1
        self.rows += len(lengths)
        self.tokens += tokens
        self.padding += len(lengths) * max(lengths) - tokens

    @property
    def padding_share(self) -> float:
        """Padding among all tokens, 0 to 1."""
        return self.padding / max(1, self.tokens + self.padding)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that count, a second of rounds; start-up, evaluation and publishing left out."""
        return self.tokens / self.seconds if self.seconds else 0.0
