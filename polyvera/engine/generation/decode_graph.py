"""DecodeGraphs: one token for each of some rows, by forwards that are captured once and replayed with other numbers.

All that differs between two steps of as many rows lies in one tensor on the device: tokens, positions, rows of the
cache, slots. So a graph serves any requests, lengths and adapters, and adapters that are written into slots later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from polyvera.adapter.pinned_memory import staged
from polyvera.adapter.side_stream import side_stream
from polyvera.engine.generation.sampler import Scores

log = logging.getLogger(__name__)
B = TypeVar("B", bound=Hashable)
WARM_UPS = 1
MIN_BETWEEN = 32
# Steps of one number of rows after which it is worth a capture of its own.
PATIENCE = 16


@dataclass(frozen=True, slots=True)
class DecodeToken:
    """The token that one row reads next: its number, its position, its row of the cache, its adapter's slot."""

    id: int
    position: int
    row: int
    slot: int


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """The same of n rows as the forward takes them. ids, positions, slots: (1, n). slot_mapping, rows: (n,)."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    slot_mapping: Tensor
    rows: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> DecodeInputs:
        """Views of numbers (5 * n,)."""
        ids, positions, slots, slot_mapping, rows = numbers.view(5, -1)
        return cls(ids[None], positions[None], slots[None], slot_mapping, rows)


@dataclass(frozen=True, slots=True)
class _Replay:
    run: Callable[[], None]
    scores: Scores


class DecodeGraphs(Generic[B]):
    """Decode forwards of padded numbers of rows.

    forward: the logits (n, vocabulary) of such inputs, for rows that use some banks. max_rows, context: of the cache,
    whose row 0 has a last place that no request fills (KVCache): rows that only pad write there. is_captured: False
    calls the forward itself on the same tensors, where there is no CUDA or the forward cannot be captured.
    """

    def __init__(
        self,
        forward: Callable[[DecodeInputs, Sequence[B]], Tensor],
        max_rows: int,
        context: int,
        device: torch.device,
        is_captured: bool,
    ) -> None:
        self._forward, self._max_rows, self._context = forward, max_rows, context
        self.is_captured = is_captured
        self._numbers = torch.zeros(5 * num_padded(max_rows, max_rows), dtype=torch.long, device=device)
        self._replays: dict[tuple[int, tuple[B, ...]], _Replay] = {}
        self._asked: Counter[tuple[int, tuple[B, ...]]] = Counter()
        self._state: Hashable = None
        if is_captured:
            self._stream, self._side = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            self.is_captured = self._can_be_captured()

    def __call__(self, tokens: Sequence[DecodeToken], banks: Sequence[B], state: Hashable) -> Scores:
        """A row for each token, as they are until the next call.

        banks: those whose slots are named. state: changes when graphs of before are no longer right, because a bank
        has come or moved.
        """
        if state != self._state:
            self._forget(state)
        size = self._size(len(tokens), tuple(banks))
        inputs = self._fill(tokens, size)
        scores = self._replayed((size, tuple(banks)), inputs) if self.is_captured else self._computed(inputs, banks)
        return scores.first(len(tokens))

    def _size(self, num_rows: int, banks: tuple[B, ...]) -> int:
        """A padded number, a greater one that is captured already where the least has not been asked for often yet.

        A capture takes as long as several steps. So the greatest is the first, and the others follow by use.
        """
        size = num_padded(num_rows, self._max_rows)
        if not self.is_captured or (size, banks) in self._replays:
            return size
        self._asked[size, banks] += 1
        if self._asked[size, banks] > PATIENCE:
            return size
        greater = (captured for captured, of in self._replays if of == banks and captured > size)
        return min(greater, default=num_padded(self._max_rows, self._max_rows))

    def _fill(self, tokens: Sequence[DecodeToken], size: int) -> DecodeInputs:
        """One copy; rows that pad are of the base, write to a place of nobody's, and see one key."""
        pads, context = [0] * (size - len(tokens)), self._context
        numbers = [
            *(token.id for token in tokens), *pads,
            *(token.position for token in tokens), *pads,
            *(token.slot for token in tokens), *pads,
            *(token.row * context + token.position for token in tokens), *(context - 1 for _ in pads),
            *(token.row for token in tokens), *pads,
        ]  # fmt: skip
        used = self._numbers[: len(numbers)]
        used.copy_(staged(numbers, used.device), non_blocking=True)
        return DecodeInputs.of(used)

    def _computed(self, inputs: DecodeInputs, banks: Sequence[B]) -> Scores:
        return Scores.of(self._forward(inputs, banks))

    def _replayed(self, key: tuple[int, tuple[B, ...]], inputs: DecodeInputs) -> Scores:
        if key not in self._replays:
            try:
                self._replays[key] = self._capture(inputs, key[1])
            except Exception:
                log.warning("a decode step cannot be captured as a CUDA graph; decoding without", exc_info=True)
                self.is_captured = False
                return self._computed(inputs, key[1])
        self._replays[key].run()
        return self._replays[key].scores

    def _capture(self, inputs: DecodeInputs, banks: Sequence[B]) -> _Replay:
        """The first runs make what is made once (workspaces, kernels, casts), and write what the replay writes."""
        ours, theirs = self._stream, torch.cuda.current_stream()
        ours.wait_stream(theirs)
        with torch.cuda.stream(ours), side_stream(self._side):
            for _ in range(WARM_UPS):
                self._computed(inputs, banks)
        theirs.wait_stream(ours)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(theirs),  # back to it also where the capture fails
            side_stream(self._side),
            torch.cuda.graph(graph, pool=self._pool, stream=ours, capture_error_mode="thread_local"),
        ):
            scores = self._computed(inputs, banks)
        return _Replay(graph.replay, scores)

    def _forget(self, state: Hashable) -> None:
        self._replays.clear()
        self._asked.clear()
        if self.is_captured:
            self._pool = torch.cuda.graph_pool_handle()  # a pool is at its end with the last graph in it
        self._state = state

    def _can_be_captured(self) -> bool:
        """Whether the base's forward waits for the GPU nowhere; before any other thread of the engine uses it."""
        with torch.inference_mode(), torch.cuda.device(self._numbers.device):
            inputs = self._fill([], 1)
            self._computed(inputs, ())
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                self._computed(inputs, ())
            except RuntimeError as error:
                log.warning("this model's forward waits for the GPU, so decoding is not captured: %s", error)
                return False
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return True


def num_padded(num_rows: int, max_rows: int) -> int:
    """The least number of rows that a forward is made for: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 and so on, or max_rows.

    A step of some rows more takes hardly longer, and every number more is one more capture.
    """
    power = 1 << max(0, num_rows - 1).bit_length()
    between = 3 * power // 4
    return min(max_rows, between if power >= MIN_BETWEEN and num_rows <= between else power)
