import pytest
from tiny_settings import Bakery

SETTINGS = Bakery.settings()


def test_every_described_field_is_a_setting_those_of_tables_with_their_path() -> None:
    assert {*SETTINGS} == {*Bakery.model_fields, "oven.degrees", "oven.fan"}


def test_an_environment_variable_is_the_prefix_and_the_name_unless_another_is_given() -> None:
    assert SETTINGS["oven.degrees"].env == "BAKERY_OVEN_DEGREES" and SETTINGS["flour"].env == "FLOUR"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("name", "text"),
        ("loaves", "integer ≥ 1"),
        ("flour", "`rye` or `wheat`"),
        ("water", "number ≥ 0 and < 1"),
        ("seeds", "list of text"),
        ("prices", "table of number"),
        ("holdout", "text or number"),
        ("oven.degrees", "number > 0"),
        ("oven.fan", "true or false"),
    ],
)
def test_type_and_bounds_are_told(path: str, text: str) -> None:
    assert SETTINGS[path].type_text == text


@pytest.mark.parametrize(
    ("path", "given", "value"),
    [
        ("name", "x", "x"),
        ("seeds", "sesame, poppy", ("sesame", "poppy")),
        ("seeds", ["a,b"], ("a,b",)),
        ("prices", ["rye=3", "wheat=4"], {"rye": "3", "wheat": "4"}),
        ("prices", "rye=3,wheat=4", {"rye": "3", "wheat": "4"}),
        ("holdout", "0.5", 0.5),
        ("holdout", "rows.csv", "rows.csv"),
        ("oven.fan", False, False),
    ],
)
def test_a_text_is_read_as_the_type_says(path: str, given: str, value: object) -> None:
    assert SETTINGS[path].from_text(given) == value


@pytest.mark.parametrize("text", ["rye", "=3"])
def test_a_text_that_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        SETTINGS["prices"].from_text(text)


def test_only_defaults_that_say_something_are_shown() -> None:
    shown = {path: one.default_text for path, one in SETTINGS.items() if one.default_text}
    assert shown == {"flour": "rye", "water": "0.5"}
