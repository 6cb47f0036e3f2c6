"""A line of the access log says who asked for what, and how it ended."""

from polyvera.server.access_log import AccessRecord
from polyvera.server.api_keys import Caller
from polyvera.store.reference import AdapterRef


def test_a_record_is_one_flat_line() -> None:
    record = AccessRecord("id", "POST", "/v1/completions", "127.0.0.1", status=200, is_whole=True)
    record.caller = Caller("acme", ("acme/*",), base=False, admin=False, key="k1")
    record.use(AdapterRef("acme/one", 3, "", 0), 5, 2)
    record.use(AdapterRef("acme/one", 3, "", 0), 1, 1)
    row = record.row()
    assert (row["tenant"], row["key"], row["adapter"]) == ("acme", "k1", "acme/one@3")
    assert (row["prompt_tokens"], row["completion_tokens"], row["status"], row["is_whole"]) == (6, 3, 200, True)
    assert 0 <= row["first_byte_s"] <= row["duration_s"] < 60 and row["time"].endswith("+00:00")
    assert "traceparent" not in row and not any(isinstance(value, dict | list) for value in row.values())


def test_a_request_that_nobody_was_admitted_for_has_no_tenant() -> None:
    row = AccessRecord("id", "GET", "/", "", trace="00-1-1-00", status=401).row()
    assert (row["tenant"], row["status"], row["traceparent"]) == ("", 401, "00-1-1-00")
