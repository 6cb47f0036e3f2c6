"""entities: the spans that tags of words name, as seqeval counts them in its default mode (CoNLL-2000's conlleval)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

OUTSIDE = "O"
PREFIXES = "BIOESLU"  # of IOB2, IOBES and BILOU
CONTINUES, ENDS = "IEL", "ESLU"  # of a word inside, and of an entity's last word


class Entity(NamedTuple):
    """A span of words: what it is, its first word, and the word behind its last."""

    label: str
    begin: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one text, in their order. tags: of its words, such as B-PER, I-PER, O."""
    found, begin, before = [], 0, (OUTSIDE, "")
    for i, tag in enumerate([*tags, OUTSIDE]):
        here = _parts(tag)
        if before[0] != OUTSIDE and _is_new(before, here):
            found.append(Entity(before[1], begin, i))
        if here[0] != OUTSIDE and (before[0] == OUTSIDE or _is_new(before, here)):
            begin = i
        before = here
    return found


def _parts(tag: str) -> tuple[str, str]:
    """(prefix, label) of a tag; one without a prefix goes on from a word before it that has the same."""
    has_prefix = tag[0] in PREFIXES and tag[1:2] in ("", "-")
    return (tag[0], tag[2:]) if has_prefix else ("I", tag)


def _is_new(before: tuple[str, str], here: tuple[str, str]) -> bool:
    """Whether an entity that the tag before is of goes no further."""
    return here[0] not in CONTINUES or before[0] in ENDS or before[1] != here[1]


def counted(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """(entities that are in both, in the truth, in what was found) over all texts: the same words and label count."""
    rows = list(zip(truth, found, strict=True))
    both = sum(len({*entities(right)} & {*entities(own)}) for right, own in rows)
    return both, sum(map(len, map(entities, truth))), sum(map(len, map(entities, found)))


def spans(tags: Sequence[str], words: Sequence[tuple[int, int]]) -> Iterator[tuple[Entity, int, int]]:
    """Each entity with the characters that it begins and ends at. words: those of each word in the text."""
    for entity in entities(tags):
        yield entity, words[entity.begin][0], words[entity.end - 1][1]
