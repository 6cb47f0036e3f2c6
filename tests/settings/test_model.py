import copy

import pytest
from pydantic import ValidationError
from tiny_settings import Bakery, Oven

from polyvera.errors import RecipeError
from polyvera.settings.source import Source


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKERY_LOAVES", "5")


def test_python_gives_arguments_and_reads_no_environment() -> None:
    assert Bakery(title="a", bread_size=2).loaves == 2 and Bakery(name="a").loaves is None


def test_places_are_read_in_their_order_and_the_environment_last() -> None:
    assert Bakery.read(Source({"name": "a"})).loaves == 5
    assert Bakery.read(Source({"bread_size": 3}), Source({"name": "a", "loaves": 4})).loaves == 3


def test_what_was_given_is_known_even_where_it_is_the_default() -> None:
    assert Bakery(name="a", flour="rye").given() == {"name": "a", "flour": "rye"}


def test_a_frozen_model_is_replaced_not_changed() -> None:
    one = Bakery(name="a", loaves=2, oven={"degrees": 3, "fan": True})
    other = one.replaced(bread_size=3, oven={"degrees": 4})
    assert (other.loaves, other.oven, other.name) == (3, Oven(degrees=4), "a") and one.loaves == 2
    with pytest.raises(ValidationError):
        one.loaves = 3  # type: ignore[misc]
    with pytest.raises(RecipeError, match="loaves=0: must be greater"):
        one.replaced(loaves=0)
    assert copy.deepcopy(one) == one


def test_each_problem_is_a_line_with_the_word_and_the_place_of_its_setting() -> None:
    with pytest.raises(RecipeError) as caught:
        Bakery.read(
            Source({"bread_size": 0, "water": 2}, write=lambda path: f"--{path}"),
            Source({"oven": {"degrees": -1}, "flour": "oat", "holdout": []}, where="f: "),
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "--name is missing (what it is called)"
    assert lines[1] == "--bread_size=0: must be greater than or equal to 1"
    assert any(line.startswith("f: flour='oat': must be 'rye' or 'wheat'") for line in lines)
    assert "f: holdout=[]: must be a valid string or must be a valid number" in lines
    assert "f: oven.degrees=-1: must be greater than 0" in lines


def test_problems_of_several_settings_use_the_words_of_each() -> None:
    with pytest.raises(RecipeError, match="^--seeds needs flour rye$"):
        Bakery.read(Source({"name": "a", "seeds": ("x",)}, write=lambda path: f"--{path}"), Source({"flour": "wheat"}))


def test_some_of_the_settings_are_read_alone() -> None:
    assert Bakery.read_some(["name", "loaves"], Source({"flour": "oat"})) == {"name": None, "loaves": 5}
    with pytest.raises(RecipeError, match="unknown bakery key 'flur'"):
        Bakery.read_some(["name"], Source({"flur": 1}))


def test_the_schema_has_descriptions_bounds_and_aliases() -> None:
    schema = Bakery.model_json_schema()
    assert schema["properties"]["title"]["type"] == "string"
    assert schema["properties"]["flour"]["description"] == "What it is made of."
    assert schema["properties"]["loaves"]["anyOf"][0]["minimum"] == 1
