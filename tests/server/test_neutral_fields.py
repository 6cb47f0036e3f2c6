"""Known fields are taken where they change nothing, and refused by name where they would."""

from typing import Any

import pytest

from polyvera.errors import SamplingError
from polyvera.server.neutral_fields import COMPLETION, MESSAGE, VECTOR, Neutral, without_neutral

TABLES = {"completion": COMPLETION, "message": MESSAGE, "vector": VECTOR}
NEUTRAL = [(table, name, v) for table in TABLES.values() for name, vs in table.items() for v in (vs or ())]


@pytest.mark.parametrize(("table", "name", "value"), NEUTRAL)
def test_a_neutral_value_is_as_good_as_left_out(table: Neutral, name: str, value: Any) -> None:
    assert without_neutral({name: value, "model": "m"}, table) == {"model": "m"}


@pytest.mark.parametrize(
    ("name", "value"), [(name, object()) for name, values in COMPLETION.items() if values is not None]
)
def test_any_other_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SamplingError, match=f"{name}: this value is not done here") as refused:
        without_neutral({name: value}, COMPLETION)
    assert refused.value.param == name


def test_a_number_is_no_truth() -> None:
    with pytest.raises(SamplingError):
        without_neutral({"use_beam_search": 0}, COMPLETION)
