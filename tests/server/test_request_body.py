"""RequestBody: what is not known is refused by its name."""

import pytest
from pydantic import ValidationError

from polyvera.server.request_body import RequestBody


class Body(RequestBody):
    a: int = 1


def test_null_is_left_out_and_an_unknown_field_is_named() -> None:
    assert Body.model_validate({"a": None}).a == 1
    with pytest.raises(ValidationError, match="nothing: this server does not know it"):
        Body.model_validate({"nothing": 1})
    with pytest.raises(ValidationError):
        Body.model_validate([])
