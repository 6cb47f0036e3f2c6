"""ActivityHistory: what each tenant and adapter did in the last hour, in steps of half a minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import time

STEP_S, NUM_STEPS = 30, 120
MAX_GROUPS = 64  # of one step; beyond: OTHERS
OTHERS = ("", "other")
Group = tuple[str, str]  # tenant, adapter


@dataclass(slots=True)
class StepCounts:
    """One group in one step. first_s: of all first tokens together. waiting: answers without a first token, at most."""

    tokens: int = 0
    num_first: int = 0
    first_s: float = 0.0
    waiting: int = 0

    def add(self, other: StepCounts) -> None:
        """Takes in another group's."""
        self.tokens += other.tokens
        self.num_first += other.num_first
        self.first_s += other.first_s
        self.waiting += other.waiting


@dataclass(slots=True)
class Step:
    """One step of time. number: of seconds since 1970 over STEP_S."""

    number: int
    groups: dict[Group, StepCounts] = field(default_factory=dict)

    def of(self, group: Group) -> StepCounts:
        """The counts of a group."""
        if group not in self.groups and len(self.groups) >= MAX_GROUPS:
            group = OTHERS
        return self.groups.setdefault(group, StepCounts())


class ActivityHistory:
    """Of the event loop's thread. Groups are (tenant, adapter's name)."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._steps: deque[Step] = deque(maxlen=NUM_STEPS)
        self._waiting: dict[Group, int] = {}

    def wait(self, group: Group, num: int) -> None:
        """So many more answers wait for their first token; fewer where it is below 0."""
        counts = self._now().of(group)
        left = self._waiting.get(group, 0) + num
        if left:
            self._waiting[group] = left
        else:
            self._waiting.pop(group, None)
        counts.waiting = max(counts.waiting, left)

    def add(self, group: Group, num_tokens: int, first_s: float | None = None) -> None:
        """Tokens of an answer, and after how many seconds they came where they are its first."""
        counts = self._now().of(group)
        counts.tokens += num_tokens
        if first_s is not None:
            counts.num_first += 1
            counts.first_s += first_s

    def series(self, group_by: str, tenant: str | None, most: int = 8) -> dict[str, object]:
        """Lines over the last hour, the busiest first, the rest together as 'other'.

        group_by: 'tenant' or 'adapter'. tenant: None is all of them.
        """
        self._now()
        last = self._steps[-1].number
        by_name: dict[str, dict[int, StepCounts]] = {}
        for step in self._steps:
            for (own, adapter), counts in step.groups.items():
                if tenant is None or own == tenant:
                    name = own if group_by == "tenant" else adapter
                    by_name.setdefault(name, {}).setdefault(step.number, StepCounts()).add(counts)
        rest = [by_name.pop(OTHERS[1])] if group_by == "adapter" and OTHERS[1] in by_name else []
        order = sorted(by_name, key=lambda name: -sum(one.tokens for one in by_name[name].values()))
        lines = [_line(name, [by_name[name]], last) for name in order[:most]]
        rest += [by_name[name] for name in order[most:]]
        if rest:
            lines.append(_line(OTHERS[1], rest, last))
        return {"object": "history", "step_s": STEP_S, "until": (last + 1) * STEP_S, "data": lines}

    def _now(self) -> Step:
        """The step of this moment; those that wait already wait in it, too."""
        number = int(self._clock()) // STEP_S
        if not self._steps or self._steps[-1].number != number:
            step = Step(number)
            self._steps.append(step)
            for group, num in self._waiting.items():
                step.of(group).waiting += num
        return self._steps[-1]


def _line(name: str, parts: Iterable[dict[int, StepCounts]], last: int) -> dict[str, object]:
    """A value for each of NUM_STEPS; the oldest first."""
    sums = [StepCounts() for _ in range(NUM_STEPS)]
    for part in parts:
        for number, counts in part.items():
            if last - number < NUM_STEPS:
                sums[NUM_STEPS - 1 - (last - number)].add(counts)
    return {
        "name": name,
        "tokens_per_s": [round(one.tokens / STEP_S, 3) for one in sums],
        "first_token_s": [round(one.first_s / one.num_first, 4) if one.num_first else None for one in sums],
        "waiting": [one.waiting for one in sums],
    }
