"""Row and Chunk: a request that runs, and which of its tokens the next step computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.kv_cache import Prefix
from polyvera.engine.generation.request import Request, Token
from polyvera.engine.generation.sampler import RequestSampler
from polyvera.engine.step_budget import fair_shares

MAX_SCORED = 256  # tokens of a prompt whose logits are all in memory
SHORT = 64  # tokens: a tenant whose prompts have no more has them read at once, however little a step may compute
LEAST = 16  # tokens of longer prompts that every step reads


@dataclass(eq=False, slots=True)
class Row:
    """A request that runs: its row of the cache, its adapter's slot, and how far it is.

    num_computed: tokens whose keys and values are in the cache. prompt_tokens: with their log-probabilities, so far.
    last_step: the latest that computed any of it. prefix: what its first num_reused tokens are copied from, None where
    that is done.
    """

    request: Request
    index: int
    slot: int
    sampler: RequestSampler
    detokenizer: Detokenizer
    num_computed: int = 0
    last_step: int = 0
    prompt_tokens: list[Token] = field(default_factory=list)
    prefix: Prefix | None = None

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


def first_copies(running: Sequence[Row]) -> list[Row]:
    """The oldest row of each tenant whose prefix is not all copied."""
    oldest: dict[str, Row] = {}
    for row in sorted(running, key=lambda row: row.request.number):
        if row.prefix is not None:
            oldest.setdefault(row.request.tenant, row)
    return list(oldest.values())


def next_chunks(running: Sequence[Row], num_tokens: int, most: int | None = None) -> tuple[list[Chunk], list[Chunk]]:
    """What the next step computes: rows that decode, by index, then pieces of prompts, each tenant's oldest first.

    num_tokens: of prompts that one step computes at most. most: rows that decode and tokens of prompts, None for any
    number of rows; those that do not decode now are the next to do so. A row whose prefix is copied has nothing yet.
    """
    running = [row for row in running if row.prefix is None]
    weights = {row.request.tenant: row.request.weight for row in running}
    rows: Sequence[Row] = [row for row in running if row.num_left == 1]
    if most is not None:
        rows = _in_turn(rows, weights, most)
    decoding = [Chunk(row, row.num_computed, row.num_computed + 1) for row in rows]
    reading = sorted((row for row in running if row.num_left > 1), key=lambda row: row.request.number)
    left, chunks = _prompt_shares(reading, weights, num_tokens, most and max(most - len(rows), 0)), []
    for row in reading:
        size = min(row.num_left, left[row.request.tenant], MAX_SCORED if row.request.is_scored else num_tokens)
        if size:
            chunks.append(Chunk(row, row.num_computed, row.num_computed + size))
            left[row.request.tenant] -= size
    return decoding, chunks


def _in_turn(rows: Sequence[Row], weights: Mapping[str, float], most: int) -> list[Row]:
    """So many rows, each tenant's share of them, those that have waited longest."""
    needs = Counter(row.request.tenant for row in rows)
    left = fair_shares(needs, weights, max(most, len(needs)))
    chosen = set()
    for row in sorted(rows, key=lambda row: row.last_step):
        if left[row.request.tenant]:
            left[row.request.tenant] -= 1
            chosen.add(row)
    return [row for row in rows if row in chosen]


def _prompt_shares(
    reading: Sequence[Row], weights: Mapping[str, float], num_tokens: int, most: int | None
) -> dict[str, int]:
    """How many tokens of each tenant's prompts a step computes. most: of tenants that ask for more than SHORT."""
    needs: Counter[str] = Counter()
    for row in reading:
        needs[row.request.tenant] += row.num_left
    shares = fair_shares(needs, weights, num_tokens)
    if most is None:
        return shares
    long = {tenant: shares[tenant] for tenant, need in needs.items() if need > SHORT}
    left = most - sum(num for tenant, num in shares.items() if tenant not in long)
    return shares | fair_shares(long, weights, max(left, LEAST))
