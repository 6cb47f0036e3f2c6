import pytest

from polyvera.evaluate.entities import Entity, counted, entities, spans


# What seqeval 1.2.2's get_entities() gives (its ends are the last words themselves).
@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("S-LOC B-PER I-PER E-PER E-PER", [("LOC", 0, 1), ("PER", 1, 4), ("PER", 4, 5)]),
        ("B I O", [("", 0, 2)]),
        ("PER PER LOC", [("PER", 0, 2), ("LOC", 2, 3)]),
    ],
)
def test_entities_are_those_that_seqeval_finds(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == [Entity(*one) for one in found]


@pytest.mark.parametrize(
    ("tags", "found"), [("0 1 1 O", [("0", 0, 1), ("1", 1, 3)]), ("N V-S N", [("N", 0, 1), ("V-S", 1, 2), ("N", 2, 3)])]
)
def test_a_tag_that_begins_with_no_known_prefix_is_a_label(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == [Entity(*one) for one in found]


def test_only_whole_entities_count() -> None:
    truth = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-PER"]]
    found = [["B-PER", "O", "O"], ["B-LOC", "O", "O"]]
    assert counted(truth, found) == (1, 3, 2)
    assert counted(truth, truth) == (3, 3, 3)


def test_an_entity_has_the_characters_of_its_words() -> None:
    assert list(spans(["B-PER", "I-PER", "O"], [(0, 3), (4, 9), (10, 12)])) == [(Entity("PER", 0, 2), 0, 9)]
