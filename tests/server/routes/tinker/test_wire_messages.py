"""Messages are those of the SDK, bit for bit, and are counted before they are read."""

import pytest
from raw_tinker import pass_body, supervised

from polyvera.server.routes.tinker.wire_messages import MESSAGES, WIRE, num_parts


def test_a_message_is_known_bytes():
    sequence = WIRE["SampledSequence"](stop_reason=1, tokens=b"ab")
    assert sequence.SerializeToString() == b"\x08\x01\x12\x02ab"
    request = WIRE["ForwardBackwardRequest"](model_id="r", seq_id=3, forward_only=True)
    request.loss_fn_config_v2["beta"].number = 1.0
    value = b"\x09\x00\x00\x00\x00\x00\x00\xf0\x3f"
    entry = b"\x0a\x04beta\x12\x09" + value
    assert request.SerializeToString() == b"\x0a\x01r\x10\x03\x30\x01\x3a" + bytes([len(entry)]) + entry


def test_the_sdk_reads_what_is_written_here():
    theirs = pytest.importorskip("tinker.proto.tinker_public_pb2", reason="the tinker package is not installed")
    for name in MESSAGES:
        own = {field.name: field.number for field in WIRE[name].DESCRIPTOR.fields}
        known = {field.name: field.number for field in getattr(theirs, name).DESCRIPTOR.fields}
        unread = {"spans", "input_spans"}  # named otherwise there, and refused here
        assert {k: v for k, v in own.items() if k not in unread}.items() <= known.items()
    found = theirs.ForwardBackwardRequest.FromString(pass_body("r", 3, supervised(), beta=0.5))
    assert found.data[0].loss_fn_inputs["weights"].shape == [4] and found.loss_fn_config_v2["beta"].number == 0.5


def test_parts_are_counted_up_to_a_bound():
    body = pass_body("r", 3, supervised())
    assert num_parts(body, 3, 1000) == 4 + 2 * (1 + 4)
    assert 5 < num_parts(b"\x1a\x00" * 10**6, 3, 5) <= 12
    assert 5 < num_parts(b"\x1a\x28" + b"\x0a\x00" * 20, 3, 5) <= 12
    for damaged in (b"\x1a\xff", b"\x1a\x05a", b"\x1b", b"\xff" * 20):
        with pytest.raises((IndexError, KeyError, ValueError)):
            num_parts(damaged, 3, 5)
