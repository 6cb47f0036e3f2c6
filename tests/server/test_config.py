"""The settings of a server, and the frozen values that the engine and the HTTP front take."""

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from polyvera.engine.limits import Limits
from polyvera.errors import ServeError
from polyvera.server.config import ServerConfig, Serving
from polyvera.settings.field import MIB
from polyvera.settings.parts import described

INNER = [(part, field.name) for part in (Limits, ServerConfig) for field in fields(part)]


def test_every_inner_choice_is_a_setting_of_a_server() -> None:
    for part, name in INNER:
        about = described(get_type_hints(part, include_extras=True)[name])
        if name != "base":
            assert about is not None and (about.name or name) in Serving.settings(), name


def test_the_defaults_of_a_server_are_those_of_its_parts() -> None:
    assert Serving(model="m").limits == Limits() and Serving(model="a/m").config == ServerConfig("m")


def test_what_is_given_arrives() -> None:
    given = Serving(
        model="m", max_num_seqs=3, max_loras=7, host_mib=5, served_model_name="x", max_body_mib=2, pin=["a"]
    )
    assert given.limits == Limits(max_rows=3, num_slots=7, host_bytes=5 * MIB) and given.pin == ("a",)
    assert given.config == ServerConfig("x", max_body_bytes=2 * MIB)


@pytest.mark.parametrize(
    ("model", "name"), [("smollm2", "smollm2"), ("/srv/base/", "base"), ("hub/id", "id"), ("wheel:name", "name")]
)
def test_the_base_is_called_by_the_last_part_of_the_model(model: str, name: str) -> None:
    assert Serving(model=model).config.base == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 65_536}, "port=65536: must be less than or equal to 65535"),
        ({"read_s": 0}, "read_s=0: must be greater than 0"),
        ({"drain_s": float("inf")}, "drain_s=inf"),
        ({"slots": 3, "max_loras": 3}, "slots and max_loras are two names of one setting"),
        ({"max_row": 3}, "unknown serving key 'max_row'; did you mean 'max_rows'"),
    ],
)
def test_an_invalid_value_is_refused_by_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(ServeError, match=said):
        Serving(model="m", **given)


@pytest.mark.parametrize("change", [{"max_body_bytes": 0}, {"read_s": 0}, {"read_s": float("nan")}, {"base": "a:b"}])
def test_settings_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ServeError, match=next(iter(change))):
        ServerConfig(**{"base": "tiny", **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "num"),
    [({}, 0), ({"keys": "keys.json"}, 1), ({"keys": "keys.json", "replicas": 1}, 0), ({"replicas": 3}, 3)],
)
def test_with_keys_the_engine_has_a_process_of_its_own_unless_told(given: dict[str, Any], num: int) -> None:
    assert Serving(model="tiny", **given).num_processes == num
