"""RequestBody: a JSON body of a request, whose fields are all known."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from polyvera.errors import SamplingError
from polyvera.server.neutral_fields import Neutral, without_neutral


class RequestBody(BaseModel):
    """A JSON body. null is as good as left out. neutral: known fields, and where they change nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), strict=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = without_neutral({name: value for name, value in values.items() if value is not None}, cls.neutral)
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in given.keys() - known:  # the first alone: pydantic tells them all
            raise SamplingError(
                f"{name[:200]}: this server does not know it, and does not pretend to have followed it; leave it out",
                name[:200],
            )
        return given
