"""Row and Chunk: a request that runs, and which of its tokens the next step computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.request import Request, Token
from polyvera.engine.generation.sampler import RequestSampler

MAX_SCORED = 256  # tokens of a prompt whose logits are all in memory
LEAST = 16  # tokens of a tenant's prompts that every step reads, however little a tenant may have of it


@dataclass(eq=False, slots=True)
class Row:
    """A request that runs: its row of the cache, its adapter's slot, and how far it is.

    num_computed: tokens whose keys and values are in the cache. prompt_tokens: with their log-probabilities, so far.
    last_step: the latest that computed any of it.
    """

    request: Request
    index: int
    slot: int
    sampler: RequestSampler
    detokenizer: Detokenizer
    num_computed: int = 0
    last_step: int = 0
    prompt_tokens: list[Token] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        """Tokens known and not computed: 1 while it decodes, more while its prompt is read."""
        return self.request.num_tokens - self.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Some of the prompt's tokens followed by the answer's."""
        prompt, answer = self.request.prompt, self.request.answer
        split = len(prompt)
        return [*prompt[start:stop], *answer[max(start - split, 0) : max(stop - split, 0)]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a row, [start, stop)."""

    row: Row
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether all that is known of the row is then computed, so that its next token can be chosen."""
        return self.stop == self.row.request.num_tokens

    @property
    def is_scored(self) -> bool:
        """Whether it is of a prompt whose log-probabilities are asked for."""
        return self.row.request.is_scored and self.start < len(self.row.request.prompt)

    @property
    def num_pairs(self) -> int:
        """Pairs of a token and a key that it may see, at most."""
        return (self.stop - self.start) * self.stop


def next_chunks(running: Sequence[Row], num_tokens: int, most: int | None = None) -> tuple[list[Chunk], list[Chunk]]:
    """What the next step computes: rows that decode, by index, then pieces of prompts, each tenant's oldest first.

    num_tokens: of prompts that one step computes at most. most: rows that decode and tokens of prompts of one tenant of
    weight 1, None for any number; those that do not decode now are the next to do so.
    """
    rows = [row for row in running if row.num_left == 1]
    decoding = [Chunk(row, row.num_computed, row.num_computed + 1) for row in _in_turn(rows, most)]
    reading = sorted((row for row in running if row.num_left > 1), key=lambda row: row.request.number)
    left, chunks = _shares(reading, num_tokens), []
    if most is not None:
        used = Counter(chunk.row.request.tenant for chunk in decoding)
        weights = {row.request.tenant: row.request.weight for row in reading}
        left = {t: min(num, max(int(most * weights[t]) - used[t], LEAST)) for t, num in left.items()}
    for row in reading:
        size = min(row.num_left, left[row.request.tenant], MAX_SCORED if row.request.is_scored else num_tokens)
        if size:
            chunks.append(Chunk(row, row.num_computed, row.num_computed + size))
            left[row.request.tenant] -= size
    return decoding, chunks


def _in_turn(rows: Sequence[Row], most: int | None) -> Sequence[Row]:
    """The most rows of each tenant, those that have waited longest."""
    if most is None or len(rows) <= most:
        return rows
    used: Counter[str] = Counter()
    chosen = set()
    for row in sorted(rows, key=lambda row: row.last_step):
        tenant = row.request.tenant
        if used[tenant] < max(1, int(most * row.request.weight)):
            used[tenant] += 1
            chosen.add(row)
    return [row for row in rows if row in chosen]


def _shares(reading: Sequence[Row], num_tokens: int) -> dict[str, int]:
    """How many tokens of each tenant's prompts a step computes: by weight; what one does not need is the others'."""
    needs: Counter[str] = Counter()
    for row in reading:
        needs[row.request.tenant] += row.num_left
    weights = {row.request.tenant: row.request.weight for row in reading}
    shares: dict[str, int] = {}
    left, weight = num_tokens, sum(weights.values())
    for tenant in sorted(needs, key=lambda tenant: needs[tenant] / weights[tenant]):
        fair = left if len(shares) == len(needs) - 1 else int(left * weights[tenant] / weight)
        shares[tenant] = min(needs[tenant], max(fair, min(left, 1)))
        left, weight = left - shares[tenant], weight - weights[tenant]
    return shares
