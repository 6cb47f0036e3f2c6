from pathlib import Path

import pytest
from tiny_settings import Bakery

from polyvera.errors import RecipeError
from polyvera.settings.source import Given, Source, from_environment, from_toml


def given(*sources: Source) -> Given:
    return Given(Bakery.settings(), "bakery", sources)


def flags(**values: object) -> Source:
    return Source(values, write=lambda path: "--" + path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\n')
    assert from_toml(path).values == {"name": "a"}


@pytest.mark.parametrize("content", [b"name = ", b"\xff", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000])
def test_whatever_a_file_raises_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.toml is not valid TOML"):
        from_toml(path)


def test_the_first_place_wins_and_a_table_is_put_together() -> None:
    found = given(flags(name="a", oven={"fan": True}), Source({"title": "b", "loaves": 3, "oven": {"degrees": 200}}))
    assert found.nested() == {"name": "a", "loaves": 3, "oven": {"fan": True, "degrees": 200}}
    assert (found.word("name"), found.word("loaves"), found.word("flour")) == ("--name", "loaves", "--flour")


@pytest.mark.parametrize(("first", "kept"), [({"oven": None}, {"oven": None}), ({"oven": {}}, {"oven": {}})])
def test_a_whole_table_wins_over_parts_of_it(first: dict[str, object], kept: dict[str, object]) -> None:
    assert given(Source(first), Source({"oven": {"degrees": 200}})).nested() == kept


def test_parts_of_a_table_win_over_a_whole_one() -> None:
    assert given(Source({"oven": {"degrees": 1}}), Source({"oven": None})).nested() == {"oven": {"degrees": 1}}


def test_unknown_names_and_two_names_of_one_setting_are_problems() -> None:
    found = given(Source({"nam": 1, "name": "a", "title": "a", "oven": {"degree": 3}}, where="f: "))
    assert found.problems == [
        "f: unknown bakery key 'nam'; did you mean 'name'?",
        "f: name and title are two names of one setting: give one of them",
        "f: unknown bakery key 'oven.degree'; did you mean 'oven.degrees'?",
    ]


def test_two_names_in_two_places_are_one_setting_given_twice() -> None:
    assert given(Source({"title": "a"}), Source({"name": "b"})).nested() == {"name": "a"}


def test_a_word_is_the_one_that_was_written() -> None:
    assert given(flags(title="a")).word("name") == "--title"


def test_the_environment_is_read_by_its_names() -> None:
    said = {"BAKERY_LOAVES": "3", "FLOUR": "wheat", "BAKERY_NAME": "", "OTHER": "x", "BAKERY_SEEDS": "a,b"}
    found = given(from_environment(Bakery.settings(), "BAKERY_", said))
    assert found.nested() == {"loaves": "3", "flour": "wheat", "seeds": ("a", "b")}
    assert found.word("loaves") == "BAKERY_LOAVES" and found.word("water") == "BAKERY_WATER"


def test_a_variable_of_the_prefix_that_means_nothing_is_a_problem() -> None:
    found = given(from_environment(Bakery.settings(), "BAKERY_", {"BAKERY_LOAFS": "3"}))
    assert found.problems == ["unknown bakery key 'BAKERY_LOAFS'; did you mean 'BAKERY_LOAVES'?"]


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as none:
        from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("x = \n")
    with pytest.raises(RecipeError, match="is not valid TOML") as bad:
        from_toml(tmp_path / "bad.toml")
    assert str(none.value).count("none.toml") == str(bad.value).count("bad.toml") == 1
